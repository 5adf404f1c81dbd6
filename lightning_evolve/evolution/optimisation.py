"""System 6, optimisation: what each generation tries, and what is learned from how it went."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from lightning_evolve.data.checks import at_least
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.artifacts import Artifacts
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.model import Model
from lightning_evolve.evolution.outer_step import OuterStep
from lightning_evolve.evolution.proposers import Proposer
from lightning_evolve.evolution.training import Training
from lightning_evolve.meta_learners import MetaLearner
from lightning_evolve.tasks import Tensors

Trial = dict[str, Any]
"""``settings`` to train with, and ``variant``: number of the perturbation of phi, None for phi."""

_OUTER, _PROPOSER = "outer", "proposer"


class Optimisation:
    r"""Two things are learned from the rewards R of challengers: phi, and the settings to train by.

    .. math:: \phi \leftarrow \phi + \beta \, \mathrm{Adam}(\nabla_\phi E[R])

    A generation has one challenger under phi and the settings that look best by now, and
    ``pairs`` antithetic pairs under perturbed phi, each pair under settings that the proposer wants
    to try. So a generation costs ``1 + 2 * pairs`` trainings: its budget.

    Args:
        pairs: antithetic pairs a generation; with 0, phi stays and the proposer's settings are
            those of the only challenger.
        sigma: standard deviation of the perturbation of phi.
        beta: rate of the outer step.
        proposer: of alpha, steps, replay and adapt; None for those of the training.

    Raises:
        UsageError: for a number out of range, or a setting that is none.
    """

    def __init__(
        self,
        pairs: int = 1,
        sigma: float = 0.1,
        beta: float = 0.03,
        proposer: Proposer | None = None,
    ) -> None:
        at_least(0, pairs=pairs)
        for name, value in (("sigma", sigma), ("beta", beta)):
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} is {value}: give a number above 0")
        self.pairs = pairs
        self.sigma = sigma
        self.beta = beta
        self.proposer = proposer
        self._unlearned = deepcopy(proposer.state_dict()) if proposer else None

    def check(self, training: Training) -> None:
        """Refuses what would fail when the first generation is planned, and the run be begun then.

        Args:
            training: whose settings the proposer may propose.

        Raises:
            UsageError: the proposer's space names settings that the training does not have, or
                its rule has no phi.
        """
        usual = training.settings()
        if self.proposer and (unknown := sorted({*self.proposer.space} - {*usual})):
            raise UsageError(
                f"the space names {unknown[0]!r}, which training does not have: choose from "
                f"{', '.join(usual)}"
            )
        for name, choices in (self.proposer.space if self.proposer else {}).items():
            for choice in choices:
                training.check_setting(name, choice)
        if not self.pairs:
            return

        def shapes(rows: int, *names: str) -> dict[str, torch.Size] | None:
            return training.phi_shapes({name: torch.zeros(rows, 2) for name in names})

        one = shapes(2, "head.weight")
        wider, two = shapes(3, "head.weight"), shapes(2, "head.weight", "encoder.weight")
        if one == {}:
            raise UsageError(
                "the rule of training has no phi that could be learned: give optimisation.pairs 0"
            )
        varied = self.proposer is not None and "adapt" in self.proposer.space
        if one != wider or (varied and one != two):
            whose, when = (
                ("each coordinate", "a new class brings new ones")
                if one != wider
                else ("each tensor", "the space varies which of them adapt")
            )
            raise UsageError(
                f"the rule of training has numbers in phi for {whose}, and {when}: give one whose "
                "phi is shared, such as Gains with per: role, or optimisation.pairs 0"
            )

    def plan(self, journal: Journal, training: Training, seed: tuple[int, int]) -> list[Trial]:
        """What a generation tries.

        Args:
            journal: with what has been learned.
            training: whose settings are those that the proposer says nothing about.
            seed: of the run, and number of the generation.
        """
        usual = training.settings()
        proposer = self._proposer(journal)
        if proposer is None:
            return self._trials([usual] * (1 + self.pairs))
        mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        proposed = [{**usual, **s} for s in proposer.propose(max(1, self.pairs), mixed)]
        if not self.pairs:
            return self._trials(proposed)
        proposed = list(islice(cycle(proposed), self.pairs))  # a space may have few choices
        return self._trials([{**usual, **proposer.best()}, *proposed])

    @staticmethod
    def _trials(settings: list[dict[str, Any]]) -> list[Trial]:
        first, *pairs = settings
        trials: list[Trial] = [{"settings": first, "variant": None}]
        for number, chosen in enumerate(pairs):
            trials += [{"settings": chosen, "variant": 2 * number + side} for side in (0, 1)]
        return trials

    def phi(
        self, journal: Journal, artifacts: Artifacts, rule: MetaLearner, trial: Trial, seed: int
    ) -> Tensors:
        """Phi of a trial.

        Args:
            journal: with what has been learned.
            artifacts: where that is.
            rule: the rule, with phi as it begins.
            trial: one of the plan's.
            seed: of the run.

        Raises:
            UsageError: there is nothing to perturb, or phi is that of another rule.
        """
        if not self.pairs:
            return rule.phi()
        outer = self._outer(journal, artifacts, rule, seed)
        return outer.phi if trial["variant"] is None else outer.perturbations()[trial["variant"]]

    def learn(
        self,
        journal: Journal,
        artifacts: Artifacts,
        training: Training,
        model: Model,
        trials: list[Trial],
        seed: int,
        champion: Callable[[], float],
    ) -> dict[str, Any]:
        """Learns from a generation.

        Args:
            journal: with what had been learned before.
            artifacts: where what is learned goes.
            training: what trained.
            model: what the challengers grew from.
            trials: the plan's, each with its ``reward``, None where it diverged, and ``steps``.
            seed: of the run.
            champion: gives the champion's own reward, which a lone challenger is set beside.

        Returns:
            What the journal is to keep, by name.
        """
        kept: dict[str, Any] = {}
        if not trials:
            return kept
        rewards = [math.nan if t["reward"] is None else float(t["reward"]) for t in trials]
        if self.pairs:
            rule = training.rule(model, trials[0]["settings"]["adapt"])
            outer = self._outer(journal, artifacts, rule, seed)
            outer.step(rewards[1:])
            kept[_OUTER] = artifacts.put_tensors(outer.state_dict())
        proposer = self._proposer(journal)
        if proposer is not None:
            usual = champion() if len(rewards) == 1 else _mean(rewards)
            for trial, reward in zip(trials, rewards, strict=True):
                # What the generation's rows do to all of its challengers is taken out.
                chosen = {name: trial["settings"][name] for name in proposer.space}
                proposer.observe(chosen, reward - usual, trial["steps"])
            kept[_PROPOSER] = proposer.state_dict()
        return kept

    def artifacts(self, journal: Journal) -> list[str]:
        """Names of the artifacts that hold what has been learned."""
        name = journal.state(_OUTER)
        return [name] if name else []

    def _outer(
        self, journal: Journal, artifacts: Artifacts, rule: MetaLearner, seed: int
    ) -> OuterStep:
        assert rule.phi(), "check has seen to it"
        outer = OuterStep(rule.phi(), beta=self.beta, sigma=self.sigma, pairs=self.pairs, seed=seed)
        if saved := journal.state(_OUTER):
            outer.load_state_dict(artifacts.tensors(saved))
        return outer

    def _proposer(self, journal: Journal) -> Proposer | None:
        # What the journal says alone counts: an attempt that failed may have taught it already.
        if self.proposer is not None and self._unlearned is not None:
            self.proposer.load_state_dict(journal.state(_PROPOSER) or deepcopy(self._unlearned))
        return self.proposer


def _mean(rewards: list[float]) -> float:
    """The mean of those that are finite, 0 if none is."""
    return float(np.nanmean(rewards)) if np.isfinite(rewards).any() else 0.0
