"""REINFORCE in parameter space: a policy gradient over phi itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.base import Episode, Estimate, Estimator
from lightning_evolve.estimators.perturbation import gaussian, perturbed, play
from lightning_evolve.noise import generator
from lightning_evolve.rewards import Reward


def reinforce(episode: Episode, *, sigma: float = 0.1, population: int = 8) -> Estimate:
    r"""Estimates the gradient of the expected reward of a Gaussian over phi (Williams 1992).

    .. math::
        \nabla_\phi \, E_{\varphi \sim N(\phi, \sigma^2 I)} R(\varphi) \approx
        \frac{1}{n} \sum_{i=1}^n (R(\varphi_i) - b_i) \,
        \nabla_\phi \log N(\varphi_i; \phi, \sigma^2 I), \qquad
        \nabla_\phi \log N(\varphi; \phi, \sigma^2 I) = \frac{\varphi - \phi}{\sigma^2}

    The policy is the Gaussian, an action is a whole update rule, and an episode has that one action
    (parameter-exploring policy gradients, Sehnke et al. 2010, with sigma fixed). The baseline b_i
    is the mean reward of the others, which leaves the estimate unbiased. All play the same task
    from the same theta. Symmetric sampling, which needs no baseline, would make it
    :func:`evolution_strategies`.

    Args:
        episode: what to play.
        sigma: standard deviation of the policy, in units of phi.
        population: actions n, at least 2.

    Returns:
        The estimate by phi, with the mean reward of all runs. ``logits`` and ``adapted`` are as in
        :func:`evolution_strategies`.
    """
    phi = episode.meta_learner.phi()
    noise = generator(episode.seed, episode.task.index)
    draws, scores = [], []
    for _ in range(population):
        draws.append(gaussian(phi, noise))
        with perturbed(phi, draws[-1], sigma):
            score, final, adapted = play(episode)
        scores.append(score)
    rewards = torch.stack(scores)
    # R_i - b_i with the mean b_i of the others: the distance to the mean of all, n / (n - 1) times.
    advantages = (rewards - rewards.mean()) / (population - 1)
    if episode.carries_on:
        _, final, adapted = play(episode)
    return Estimate(
        phi={
            name: torch.tensordot(advantages, torch.stack([d[name] for d in draws]), 1) / sigma
            for name in phi
        },
        theta={},
        reward=rewards.mean(),
        logits=final,
        adapted=adapted,
    )


@dataclass(frozen=True)
class Reinforce(Estimator):
    """REINFORCE over a Gaussian whose mean is phi, with a leave-one-out baseline.

    Serves every reward and every rule; :class:`EvolutionStrategies` does so with less noise for the
    same runs, as its pairs cancel what the baseline only centres.

    Args:
        sigma: standard deviation of the policy, in units of phi.
        population: actions a task; each costs an adaptation.

    Raises:
        UsageError: if ``sigma`` is not a positive number or ``population`` below 2.
    """

    anneals = True
    sigma: float = 0.1
    population: int = 8

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(
                f"sigma is {self.sigma}, and a policy that always does the same has no gradient; "
                "give a positive number such as 0.1"
            )
        if self.population < 2:
            raise UsageError(
                f"population is {self.population}, and the baseline is the mean reward of the "
                "others; give at least 2"
            )

    def __call__(self, episode: Episode) -> Estimate:
        """See :func:`reinforce`."""
        return reinforce(episode, sigma=self.sigma, population=self.population)

    def check(
        self, *, reward: Reward, steps: int, measured: tuple[int, ...], learn_init: bool
    ) -> None:
        """See :meth:`Estimator.check`."""
        if learn_init:
            raise UsageError(
                "Reinforce cannot learn the initial theta: the noise of its estimate grows with "
                "the number of parameters; use Unrolled or FirstOrder"
            )
