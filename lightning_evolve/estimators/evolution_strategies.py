"""Antithetic evolution strategies: the meta-gradient from rewards alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.base import Episode, Estimate, Estimator
from lightning_evolve.estimators.perturbation import gaussian, perturbed, play
from lightning_evolve.noise import generator
from lightning_evolve.rewards import Reward


def evolution_strategies(episode: Episode, *, sigma: float = 0.1, pairs: int = 1) -> Estimate:
    r"""Estimates the gradient of the smoothed reward over the full horizon (Salimans et al. 2017).

    .. math::
        \nabla_\phi \, E_\epsilon R(\phi + \sigma \epsilon) \approx \frac{1}{n} \sum_{i=1}^n
        \frac{R(\phi + \sigma \epsilon_i) - R(\phi - \sigma \epsilon_i)}{2 \sigma} \, \epsilon_i,
        \qquad \epsilon_i \sim N(0, I)

    Rewards need no gradient, memory does not grow with K, and chaotic inner dynamics are smoothed
    (Metz et al. 2019). Both runs of a pair play the same task from the same theta, so what they
    share cancels. The noise is a function of the seed, the task's index and the pair's number: any
    number of processes draws the same, and those that share a task exchange no noise.

    Args:
        episode: what to play.
        sigma: standard deviation of the perturbation, in units of phi.
        pairs: antithetic pairs n, over all processes that share the task.

    Returns:
        The estimate by phi from this process's pairs, with the mean reward of their runs.
        ``logits`` and ``adapted`` are those of phi itself where theta carries on, which takes one
        more run, else those of the last perturbed run.
    """
    phi = episode.meta_learner.phi()
    noise = generator(episode.seed, episode.task.index)
    part, parts = episode.task.share
    totals = {name: torch.zeros_like(p) for name, p in phi.items()}
    rewards: list[Tensor] = []
    for pair in range(pairs):
        epsilon = gaussian(phi, noise)  # drawn for every pair, so that each has noise of its own
        if pair % parts != part:
            continue
        scores = []
        for sign in (1.0, -1.0):
            with perturbed(phi, epsilon, sign * sigma):
                score, final, adapted = play(episode)
            scores.append(score)
        slope = (scores[0] - scores[1]) / (2 * sigma * pairs / parts)
        for name, total in totals.items():
            total += slope * epsilon[name]
        rewards += scores
    if episode.carries_on:
        _, final, adapted = play(episode)
    return Estimate(
        phi=totals, theta={}, reward=torch.stack(rewards).mean(), logits=final, adapted=adapted
    )


@dataclass(frozen=True)
class EvolutionStrategies(Estimator):
    """Antithetic evolution strategies over the full horizon; serves every reward.

    Where there are more processes than tasks in an outer step, several play the same task, each
    its share of the pairs.

    Args:
        sigma: standard deviation of the perturbation of phi; rules here are built so that 0.1
            is a small change.
        pairs: antithetic pairs a task; each costs two adaptations.

    Raises:
        UsageError: if ``sigma`` is not a positive number or ``pairs`` below 1.
    """

    anneals = True
    sigma: float = 0.1
    pairs: int = 1

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"sigma is {self.sigma}; give a positive number such as 0.1")
        if self.pairs < 1:
            raise UsageError(f"pairs is {self.pairs}; give at least 1")

    def __call__(self, episode: Episode) -> Estimate:
        """See :func:`evolution_strategies`."""
        return evolution_strategies(episode, sigma=self.sigma, pairs=self.pairs)

    def check(
        self, *, reward: Reward, steps: int, measured: tuple[int, ...], learn_init: bool
    ) -> None:
        """See :meth:`Estimator.check`."""
        if learn_init:
            raise UsageError(
                "EvolutionStrategies cannot learn the initial theta: the noise of its estimate "
                "grows with the number of parameters; use Unrolled or FirstOrder"
            )

    def check_share(self, parts: int) -> None:
        """See :meth:`Estimator.check_share`."""
        if self.pairs % parts:
            raise UsageError(
                f"pairs is {self.pairs} and {parts} processes share each task, which must all get "
                f"as many: give pairs as a multiple of {parts}, or {parts} times the tasks_per_step"
            )
