"""Antithetic evolution strategies: the meta-gradient from rewards alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.base import Episode, Estimate, Estimator
from lightning_evolve.inner_loop import Adapted, logits
from lightning_evolve.rewards import Reward
from lightning_evolve.tasks import Tensors


def evolution_strategies(episode: Episode, *, sigma: float = 0.1, pairs: int = 1) -> Estimate:
    r"""Estimates the gradient of the smoothed reward over the full horizon (Salimans et al. 2017).

    .. math::
        \nabla_\phi \, E_\epsilon R(\phi + \sigma \epsilon) \approx \frac{1}{n} \sum_{i=1}^n
        \frac{R(\phi + \sigma \epsilon_i) - R(\phi - \sigma \epsilon_i)}{2 \sigma} \, \epsilon_i,
        \qquad \epsilon_i \sim N(0, I)

    Rewards need no gradient, memory does not grow with K, and chaotic inner dynamics are smoothed
    (Metz et al. 2019). Both runs of a pair play the same task from the same theta, so what they
    share cancels. The noise is a function of the seed and the task's index: any number of
    processes draws the same.

    Args:
        episode: what to play.
        sigma: standard deviation of the perturbation, in units of phi.
        pairs: antithetic pairs n.

    Returns:
        The estimate by phi, with the mean reward of all runs. ``logits`` and ``adapted`` are
        those of phi itself where theta carries on, which takes one more run, else those of the
        last perturbed run.
    """
    phi = episode.meta_learner.phi()
    # Drawn on the CPU, so that the same numbers come out on every device.
    noise = torch.Generator().manual_seed(_mix(episode.seed, episode.task.index))
    totals = {name: torch.zeros_like(p) for name, p in phi.items()}
    rewards: list[Tensor] = []
    for _ in range(pairs):
        epsilon = {
            n: torch.randn(p.shape, generator=noise, dtype=torch.float64).to(p)
            for n, p in phi.items()
        }
        scores = []
        for sign in (1.0, -1.0):
            with _perturbed(phi, epsilon, sign * sigma):
                score, final, adapted = _play(episode)
            scores.append(score)
        slope = (scores[0] - scores[1]) / (2 * sigma * pairs)
        for name, total in totals.items():
            total += slope * epsilon[name]
        rewards += scores
    if episode.carries_on:
        _, final, adapted = _play(episode)
    return Estimate(
        phi=totals, theta={}, reward=torch.stack(rewards).mean(), logits=final, adapted=adapted
    )


@torch.no_grad()
def _play(episode: Episode) -> tuple[Tensor, Tensor, Adapted]:
    """One run without a graph: mean reward, last logits, last theta."""
    query, rewards = episode.task.query, []
    for k, adapted in episode.walk(episode.start, range(episode.steps)):
        if k in episode.measured:
            predictions = logits(episode.learner, adapted.theta, query)
            rewards.append(episode.reward(predictions, query.labels))
    return torch.stack(rewards).mean(), predictions, adapted


@contextmanager
def _perturbed(phi: Tensors, epsilon: Tensors, scale: float) -> Iterator[None]:
    """Moves phi by scale * epsilon, and puts back the very same numbers."""
    saved = {name: p.detach().clone() for name, p in phi.items()}
    try:
        with torch.no_grad():
            for name, p in phi.items():
                p.add_(epsilon[name], alpha=scale)
        yield
    finally:
        with torch.no_grad():
            for name, p in phi.items():
                p.copy_(saved[name])


def _mix(seed: int, index: int) -> int:
    """A 63-bit seed from two numbers, so that neighbouring tasks share no noise (SplitMix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) >> 1


@dataclass(frozen=True)
class EvolutionStrategies(Estimator):
    """Antithetic evolution strategies over the full horizon; serves every reward.

    Args:
        sigma: standard deviation of the perturbation of phi; rules here are built so that 0.1
            is a small change.
        pairs: antithetic pairs a task; each costs two adaptations.

    Raises:
        UsageError: if ``sigma`` is not positive or ``pairs`` below 1.
    """

    sigma: float = 0.1
    pairs: int = 1

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not self.sigma > 0:
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
