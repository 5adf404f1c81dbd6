"""System 4, training: a challenger grows from the champion by a meta-learned update."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from lightning_evolve.data.checks import at_least
from lightning_evolve.data.table import Table
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.model import Model
from lightning_evolve.inner_loop import Adapted, detached, inner_steps
from lightning_evolve.meta_learners import MetaLearner, MetaLearnerFactory
from lightning_evolve.modules.building import adapting
from lightning_evolve.noise import generator
from lightning_evolve.pretrained import load_rule
from lightning_evolve.tasks import Batch, Task, Tensors


@dataclass(frozen=True)
class Examples:
    """Encoded, labelled and weighted rows.

    Args:
        inputs: keyword inputs of the learner, each of shape ``[rows, ...]``.
        labels: int64 of shape ``[rows]``.
        weights: how likely a row is drawn, relative to the others; above 0, of shape ``[rows]``.
    """

    inputs: Tensors
    labels: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Training:
    r"""The inner loop over mini-batches of new rows and of old ones.

    .. math::
        \theta_{k+1} = \theta_k + \alpha \, g_\phi(\nabla L(\theta_k; B_k), \theta_k, s_k)

    Each mini-batch B_k has a share of old rows, replayed against forgetting (Chaudhry et al. 2019).

    Args:
        rule: g_phi: the folder of a saved rule, the name of one that comes with the package, or a
            rule's class.
        alpha: inner step size; that of a saved rule's training if None.
        steps: inner steps K of a challenger.
        first_steps: those of the founding champion.
        batch_size: rows of a mini-batch.
        replay: share of old rows in it.
        adapt: which parameters adapt, as of `EvolvingClassifier`.
        seconds: a challenger's training stops after so many seconds of wall time, whatever steps it
            has taken; with it two runs do not give the same numbers.

    Raises:
        UsageError: a number out of range, or a rule that cannot be read.
    """

    def __init__(
        self,
        rule: str | MetaLearnerFactory = "text",
        alpha: float | None = None,
        steps: int = 100,
        first_steps: int = 300,
        batch_size: int = 32,
        replay: float = 0.5,
        adapt: Sequence[str] = ("all",),
        seconds: float | None = None,
    ) -> None:
        at_least(1, steps=steps, first_steps=first_steps, batch_size=batch_size)
        if not 0 <= replay < 1:
            raise UsageError(f"replay is {replay}: give a share of at least 0 and below 1")
        if seconds is not None and not seconds > 0:
            raise UsageError(f"seconds is {seconds}: give a time above 0, or none")
        self.saved: MetaLearner | None = None
        self.factory: MetaLearnerFactory | None = None
        if isinstance(rule, str):
            self.saved, config = load_rule(rule)
            alpha = config["alpha"] if alpha is None else alpha
        else:
            self.factory = rule
        if alpha is None or not (alpha > 0 and math.isfinite(alpha)):
            raise UsageError(f"alpha is {alpha}: give an inner step size above 0")
        self.alpha = alpha
        self.steps = steps
        self.first_steps = first_steps
        self.batch_size = batch_size
        self.replay = replay
        self.adapt = list(adapt)
        self.seconds = seconds

    def settings(self) -> dict[str, Any]:
        """What a proposer may vary, as it is configured."""
        return {
            "alpha": self.alpha,
            "steps": self.steps,
            "replay": self.replay,
            "adapt": self.adapt,
        }

    def check_setting(self, name: str, value: Any) -> None:
        """Refuses what :meth:`grow` could not be given for a setting.

        Args:
            name: one of :meth:`settings`.
            value: for it.

        Raises:
            UsageError: naming both.
        """
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = {
            "alpha": number and math.isfinite(value) and value > 0,
            "steps": number and value >= 1 and value % 1 == 0,
            "replay": number and 0 <= value < 1,
            "adapt": isinstance(value, list | tuple)
            and all(isinstance(part, str) for part in value),
        }
        wanted = {
            "alpha": "a number above 0",
            "steps": "a whole number from 1 on",
            "replay": "a share of at least 0 and below 1",
            "adapt": "a list such as [head]",
        }
        if not fits[name]:
            raise UsageError(f"the space has {value!r} for {name}; give {wanted[name]}")

    def phi_shapes(self, theta: Tensors) -> dict[str, torch.Size] | None:
        """Returns the shapes of what the rule can learn, None if it is not for such parameters.

        Args:
            theta: any parameters, by name.
        """
        try:
            return {name: p.shape for name, p in self._rule(theta).phi().items()}
        except UsageError:
            return None  # one for the tensors of a certain model

    def rule(self, model: Model, adapt: Sequence[str]) -> MetaLearner:
        """Returns g_phi for the parameters of a model, with phi as it begins.

        Args:
            model: whose parameters adapt.
            adapt: which of them.
        """
        return self._rule(adapting(model.learner, adapt))

    def _rule(self, theta: Tensors) -> MetaLearner:
        if self.saved is not None:
            return deepcopy(self.saved).over(theta)
        assert self.factory is not None, "a rule is saved, or built"
        return self.factory(theta)

    def grow(
        self,
        model: Model,
        new: Examples,
        old: Examples | None = None,
        *,
        phi: Tensors | None = None,
        settings: dict[str, Any] | None = None,
        steps: int | None = None,
        seed: tuple[int, ...] = (0, 0),
    ) -> tuple[Model, int]:
        """Grows a challenger.

        Args:
            model: what to begin from; it is not changed.
            new: rows that it has not learned.
            old: rows to replay.
            phi: of the rule, by name; as it begins if None.
            settings: in place of :meth:`settings`.
            steps: in place of those of the settings.
            seed: at least two numbers, which decide what is drawn.

        Returns:
            The challenger, and how many steps it has taken.

        Raises:
            DivergedError: training has diverged.
        """
        chosen = {**self.settings(), **(settings or {})}
        rule = self.rule(model, chosen["adapt"])
        if phi is not None:
            rule.load_state_dict({**rule.state_dict(), **phi})
        theta = detached(adapting(model.learner, chosen["adapt"]))
        count = steps or int(chosen["steps"])
        drawn = Drawn(new, old, self.batch_size, float(chosen["replay"]), count, seed)
        task = Task(drawn, drawn[0])
        start = Adapted(theta, rule.init(theta))
        walk = inner_steps(
            model.learner, rule, start, task, alpha=float(chosen["alpha"]), steps=range(count)
        )
        began, taken, at = time.perf_counter(), 0, start
        for adapted in walk:
            at, taken = adapted, taken + 1
            if self.seconds is not None and time.perf_counter() - began > self.seconds:
                break
        if not all(bool(t.isfinite().all()) for t in at.theta.values()):
            raise DivergedError(
                f"training diverged within {taken} steps at alpha {chosen['alpha']:g}: give a "
                "smaller alpha"
            )
        grown = deepcopy(model.learner)
        grown.load_state_dict({**grown.state_dict(), **at.theta})
        return model.with_learner(grown.eval()), taken


class DivergedError(UsageError):
    """A training run whose parameters are no numbers any more."""


class Drawn(Sequence[Batch]):
    """The mini-batches of a training run, each drawn when it is asked for.

    Args:
        new: rows to learn.
        old: rows to replay; None or none at all for only new ones.
        batch_size: rows of a batch.
        replay: share of old rows.
        count: number of batches.
        seed: batch k is a function of this and k.
    """

    def __init__(
        self,
        new: Examples,
        old: Examples | None,
        batch_size: int,
        replay: float,
        count: int,
        seed: tuple[int, ...],
    ) -> None:
        assert len(new), "there is something to learn"
        replayed = round(batch_size * replay) if old is not None and len(old) else 0
        self._parts = [(new, batch_size - replayed)]
        if old is not None and replayed:
            self._parts.append((old, replayed))
        self._count = count
        self._seed = seed

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, k: int) -> Batch: ...

    @overload
    def __getitem__(self, k: slice) -> Sequence[Batch]: ...

    def __getitem__(self, k: int | slice) -> Batch | Sequence[Batch]:
        """Batch k."""
        if isinstance(k, slice):
            return [self[n] for n in range(self._count)[k]]
        if not 0 <= k < self._count:
            raise IndexError(k)  # which ends a loop over a sequence
        source = generator(*self._seed, k)
        drawn = [
            (part, torch.multinomial(part.weights, rows, replacement=True, generator=source))
            for part, rows in self._parts
            if rows
        ]
        inputs = {
            name: torch.cat([part.inputs[name][rows] for part, rows in drawn])
            for name in drawn[0][0].inputs
        }
        labels = torch.cat([part.labels[rows] for part, rows in drawn])
        return Table(inputs, labels, ()).batch(torch.arange(len(labels)))
