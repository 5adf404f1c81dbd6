"""The contract of an estimator of the meta-gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from torch import Tensor

from lightning_evolve.inner_loop import Adapted, Graph, inner_steps
from lightning_evolve.learners.base import Learner
from lightning_evolve.meta_learners.base import MetaLearner
from lightning_evolve.rewards import Reward
from lightning_evolve.tasks import Task, Tensors


class Episode(NamedTuple):
    """One task to be played, and the score that counts.

    Args:
        learner: the base classifier.
        meta_learner: the update rule; phi are its trainable parameters.
        start: theta and the rule's state before the first inner step; tensors of theta that
            require a gradient are a learned initial theta and get one.
        task: support to adapt on, query to score on.
        alpha: inner step size.
        steps: number of inner steps K.
        reward: score of the query set.
        measured: after which inner steps (1..K) the reward is taken; the episode's reward is
            the mean over them.
        seed: what is random is a function of this number and ``task.index``.
        carries_on: whether theta goes on from where the episode ends (persistent theta), so that
            ``Estimate.adapted`` has to be that of phi itself.
    """

    learner: Learner
    meta_learner: MetaLearner
    start: Adapted
    task: Task
    alpha: float
    steps: int
    reward: Reward
    measured: tuple[int, ...]
    seed: int = 0
    carries_on: bool = False

    def walk(
        self, begin: Adapted, steps: range, graph: Graph = "none"
    ) -> Iterator[tuple[int, Adapted]]:
        """Yields how many inner steps are done, from 1 on, and the learner after each.

        Args:
            begin: where to begin.
            steps: numbers of the inner steps to take.
            graph: as in :func:`lightning_evolve.inner_loop.inner_steps`.
        """
        walk = inner_steps(
            self.learner,
            self.meta_learner,
            begin,
            self.task,
            alpha=self.alpha,
            steps=steps,
            graph=graph,
        )
        yield from enumerate(walk, start=steps.start + 1)

    def learned_theta(self) -> Tensors:
        """Returns the tensors of the initial theta that are learned; empty where it is not."""
        return {n: t for n, t in self.start.theta.items() if t.requires_grad}


class Estimate(NamedTuple):
    """What an episode says about phi.

    Args:
        phi: estimate of the gradient of the expected reward by phi, by name; uphill.
        theta: the same by the initial theta where that is learned, else empty.
        reward: the episode's mean reward, a scalar.
        logits: predictions on the query set after the last step, ``[rows, num_classes]``.
        adapted: the learner after the last step, without a graph.
    """

    phi: Tensors
    theta: Tensors
    reward: Tensor
    logits: Tensor
    adapted: Adapted


class Estimator:
    """A way to get the gradient of the expected reward by phi.

    Attributes:
        second_order: whether it differentiates through the gradients of the inner steps.
    """

    second_order: ClassVar[bool] = False

    def __call__(self, episode: Episode) -> Estimate:
        """Plays an episode and estimates the gradient."""
        raise NotImplementedError

    def check(
        self, *, reward: Reward, steps: int, measured: tuple[int, ...], learn_init: bool
    ) -> None:
        """Refuses what this estimator can't serve.

        Args:
            reward: score of the query set.
            steps: inner steps K.
            measured: after which steps the reward is taken.
            learn_init: whether the initial theta is learned.

        Raises:
            UsageError: with a sentence that names what would serve instead.
        """
        raise NotImplementedError


def windows(steps: int, truncation: int) -> Iterator[range]:
    """Yields the inner steps in windows that a meta-gradient flows through.

    Args:
        steps: number of inner steps K.
        truncation: length of a window, 0 for all steps in one.

    Example:
        >>> list(windows(5, 2))
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    length = truncation or steps
    for first in range(0, steps, length):
        yield range(first, min(first + length, steps))
