"""A policy gradient in action space, with a learned value function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.base import Episode, Estimate, Estimator
from lightning_evolve.estimators.perturbation import play
from lightning_evolve.inner_loop import Adapted
from lightning_evolve.meta_learners.base import MetaLearner, State
from lightning_evolve.meta_learners.controller import Controller
from lightning_evolve.noise import generator
from lightning_evolve.rewards import Reward
from lightning_evolve.tasks import Tensors


class Rollout(NamedTuple):
    """One run of K inner steps under drawn actions.

    Args:
        statistics: states s_0..s_{K-1}, ``[K, tensors, statistics]``.
        actions: a_0..a_{K-1}, ``[K, tensors]``.
        scores: R(theta_0)..R(theta_K), ``[K + 1]``, the last known where there was none.
        logits: predictions on the query set after the last step.
        adapted: the learner after it.
    """

    statistics: Tensor
    actions: Tensor
    scores: Tensor
    logits: Tensor
    adapted: Adapted


def actor_critic(
    episode: Episode,
    *,
    rollouts: int = 4,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    entropy: float = 0.0,
    value_weight: float = 0.5,
    score_every: int = 1,
) -> Estimate:
    r"""Estimates the gradient of the expected return by the policy's parameters.

    .. math::
        \nabla_\phi E\Big[\sum_k \gamma^k r_k\Big] \approx
        \sum_k \hat A_k \, \nabla_\phi \log \pi_\phi(a_k \mid s_k), \qquad
        r_k = w_k \, (R(\theta_{k+1}) - R(\theta_k))

    with the generalised advantage estimate (Schulman et al. 2016)

    .. math::
        \hat A_k = \sum_{l \ge 0} (\gamma \lambda)^l \, \delta_{k+l}, \qquad
        \delta_k = r_k + \gamma V(s_{k+1}) - V(s_k)

    A reward r_k is the improvement of the score in inner step k, times the share w_k of the
    measured steps that come after it: undiscounted, the return is the episode's reward minus the
    score of theta_0. The action of step k came about through the policy alone, so the gradient of
    the score by theta is not needed (Williams 1992; Sutton et al. 2000). With lambda = gamma = 1
    the estimate is unbiased whatever V is; a smaller lambda takes some variance for a bias as
    large as V's error.

    Added to it are the gradients of ``entropy`` times the policy's entropy, which keeps it
    exploring, and of minus ``value_weight`` times half the squared distance of V(s_k) from the
    return after k, which no parameter of the policy takes part in.

    Args:
        episode: what to play; its rule is a :class:`Controller`.
        rollouts: runs of the task, over all processes that share it; the noise of each is a
            function of the seed, the task's index and the run's number.
        gamma: discount a step.
        gae_lambda: lambda.
        entropy: weight of the entropy.
        value_weight: weight of the value function's error.
        score_every: inner steps from one score to the next, beside those that are measured. What
            is gained in between is the reward of the last of them.

    Returns:
        The estimate by phi from this process's rollouts, with their mean reward. ``logits`` and
        ``adapted`` are those of the mean action where theta carries on, else of the last rollout.
    """
    controller = episode.meta_learner
    assert isinstance(controller, Controller), "check_rule has seen to it"
    part, parts = episode.task.share
    with torch.no_grad():
        _, first = episode.score(episode.start.theta, 0)  # all runs begin at it
    runs = [
        roll_out(
            episode,
            controller,
            generator(episode.seed, episode.task.index, number),
            first,
            score_every,
        )
        for number in range(part, rollouts, parts)
    ]
    scores = torch.stack([run.scores for run in runs])
    statistics = torch.stack([run.statistics for run in runs])
    rewards = improvements(scores, episode.measured)
    remaining = 1 - torch.arange(episode.steps).to(scores) / episode.steps
    with torch.enable_grad():
        policy = controller.policy(statistics)
        actions = torch.stack([run.actions for run in runs])
        chance = policy.log_prob(actions).sum(dim=-1)  # type: ignore[no-untyped-call]
        variety = policy.entropy().sum(dim=-1)  # type: ignore[no-untyped-call]
        values = controller.value(statistics, scores[:, :-1], remaining.expand(len(runs), -1))
        advantages = generalised_advantages(rewards, values.detach(), gamma, gae_lambda)
        # With lambda 1 and no baseline, an advantage is the return.
        returns = generalised_advantages(rewards, torch.zeros_like(rewards), gamma, 1.0)
        # Discounted from the start of the episode, as the objective is.
        discounts = gamma ** torch.arange(episode.steps).to(scores)
        objective = (
            discounts * advantages * chance
            + entropy * variety
            - value_weight * (values - returns).square() / 2
        )
        phi = controller.phi()
        gradients = torch.autograd.grad(
            objective.sum() / len(runs), list(phi.values()), materialize_grads=True
        )
    final, adapted = runs[-1].logits, runs[-1].adapted
    if episode.carries_on:
        _, final, adapted = play(episode)
    return Estimate(
        phi=dict(zip(phi, gradients, strict=True)),
        theta={},
        reward=scores[:, list(episode.measured)].mean(),
        logits=final,
        adapted=adapted,
    )


def improvements(scores: Tensor, measured: tuple[int, ...]) -> Tensor:
    """Returns the reward of each inner step, such that their sum is what the episode has gained.

    Args:
        scores: R(theta_0)..R(theta_K), ``[..., K + 1]``.
        measured: after which steps, 1..K, the score counts.

    Returns:
        r_0..r_{K-1}, ``[..., K]``, which add up to the mean measured score minus that of theta_0.

    Example:
        >>> improvements(torch.tensor([0.0, 1.0, 3.0]), measured=(2,))
        tensor([1., 2.])
        >>> improvements(torch.tensor([0.0, 1.0, 3.0]), measured=(1, 2))
        tensor([1., 1.])
    """
    steps = torch.arange(scores.shape[-1] - 1)
    counted = (torch.tensor(measured)[:, None] > steps).to(scores).mean(dim=0)
    return counted * scores.diff(dim=-1)


def generalised_advantages(
    rewards: Tensor, values: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """Returns how much better each action was than the value function expects.

    Args:
        rewards: r_0..r_{K-1}, ``[..., K]``.
        values: V(s_0)..V(s_{K-1}), ``[..., K]``; after the last step nothing is to come.
        gamma: discount a step.
        gae_lambda: lambda.

    Returns:
        Advantages of shape ``[..., K]``.

    Example:
        >>> rewards, values = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
        >>> generalised_advantages(rewards, values, gamma=1.0, gae_lambda=1.0)
        tensor([2.5000, 1.5000])
        >>> generalised_advantages(rewards, values, gamma=1.0, gae_lambda=0.0)
        tensor([1.0000, 1.5000])
    """
    following = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], dim=-1)
    advantages = []
    ahead = torch.zeros_like(rewards[..., 0])
    for delta in reversed((rewards + gamma * following - values).unbind(dim=-1)):
        ahead = delta + gamma * gae_lambda * ahead
        advantages.append(ahead)
    return torch.stack(advantages[::-1], dim=-1)


@torch.no_grad()
def roll_out(
    episode: Episode,
    controller: Controller,
    noise: torch.Generator,
    first: Tensor,
    score_every: int = 1,
) -> Rollout:
    """Plays an episode under actions that are drawn from the policy.

    Args:
        episode: what to play.
        controller: its rule.
        noise: where the actions come from.
        first: score of theta_0.
        score_every: inner steps from one score to the next; a step without one keeps the last.

    Returns:
        What was seen, done and scored.
    """
    drawing = _Drawing(controller, noise)
    scores = [first]
    playing = episode._replace(meta_learner=drawing)
    scored = {*range(score_every, episode.steps, score_every), *episode.measured, episode.steps}
    for step, (_, adapted) in enumerate(playing.walk(episode.start, range(episode.steps)), 1):
        if step in scored:
            predictions, reward = episode.score(adapted.theta, step)
            scores.append(reward)
        else:
            scores.append(scores[-1])
    return Rollout(
        torch.stack(drawing.statistics),
        torch.stack(drawing.actions),
        torch.stack(scores),
        predictions,
        adapted,
    )


class _Drawing(MetaLearner):
    """A controller that acts at random and keeps a record."""

    def __init__(self, controller: Controller, noise: torch.Generator) -> None:
        super().__init__(dict.fromkeys(controller.names, torch.empty(0)))
        self.controller, self.noise = controller, noise
        self.statistics: list[Tensor] = []
        self.actions: list[Tensor] = []

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        observation = self.controller.observe(grads, params, state)
        policy = self.controller.policy(observation.statistics)
        drawn = torch.randn(policy.mean.shape, generator=self.noise, dtype=torch.float64)
        action = policy.mean + policy.stddev * drawn.to(policy.mean)
        self.statistics.append(observation.statistics)
        self.actions.append(action)
        return self.controller.act(observation, action)


@dataclass(frozen=True)
class ActorCritic(Estimator):
    """The policy gradient of a :class:`Controller`, its value function as the baseline.

    Serves every reward. Memory does not grow with K, and the noise not with the size of phi but
    with the number of actions. Where there are more processes than tasks in an outer step, several
    play the same task, each its share of the rollouts.

    Args:
        rollouts: runs of a task.
        gamma: discount of a reward for each step that it comes later, in 0..1.
        gae_lambda: lambda of the generalised advantage estimate, in 0..1; 1 is unbiased.
        entropy: weight of the policy's entropy, in reward per nat.
        value_weight: weight of the value function's squared error.
        score_every: inner steps from one score to the next, beside those that are measured. Each
            step's own score tells best which action was good; scoring seldom saves time.

    Raises:
        UsageError: for a number out of range.
    """

    rollouts: int = 4
    gamma: float = 1.0
    gae_lambda: float = 0.95
    entropy: float = 0.0
    value_weight: float = 0.5
    score_every: int = 1

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name in ("rollouts", "score_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give at least 1")
        for name, value in (("gamma", self.gamma), ("gae_lambda", self.gae_lambda)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; give a number from 0 to 1")
        for name, value in (("entropy", self.entropy), ("value_weight", self.value_weight)):
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value}; give 0 or a positive number")

    def __call__(self, episode: Episode) -> Estimate:
        """See :func:`actor_critic`."""
        return actor_critic(episode, **vars(self))

    def check(
        self, *, reward: Reward, steps: int, measured: tuple[int, ...], learn_init: bool
    ) -> None:
        """See :meth:`Estimator.check`."""
        if learn_init:
            raise UsageError(
                "ActorCritic learns step sizes and cannot learn the initial theta; "
                "use Unrolled or FirstOrder, or learn_init: false"
            )

    def check_rule(self, meta_learner: MetaLearner) -> None:
        """See :meth:`Estimator.check_rule`."""
        if not isinstance(meta_learner, Controller):
            raise UsageError(
                f"ActorCritic needs a rule that acts at random, and {type(meta_learner).__name__} "
                "does not; use the meta_learner Controller, or the estimator EvolutionStrategies"
            )

    def check_share(self, parts: int) -> None:
        """See :meth:`Estimator.check_share`."""
        if self.rollouts % parts:
            raise UsageError(
                f"rollouts is {self.rollouts} and {parts} processes share each task, which must "
                f"all get as many: give rollouts as a multiple of {parts}, or {parts} times the "
                "tasks_per_step"
            )
