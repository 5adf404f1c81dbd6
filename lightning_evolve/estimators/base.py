"""The contract of an estimator of the meta-gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.memory import Memory
from lightning_evolve.inner_loop import Adapted, Graph, Pull, inner_steps, logits
from lightning_evolve.learners.base import Learner
from lightning_evolve.meta_learners.base import MetaLearner
from lightning_evolve.noise import dropping
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
            the mean over them, weighted where ``early`` says so.
        seed: what is random is a function of this number and ``task.index``.
        carries_on: whether theta goes on from where the episode ends (persistent theta), so that
            ``Estimate.adapted`` has to be that of phi itself.
        damping: strength of a proximal term that pulls theta back to ``start.theta``, 0 for none.
        memory: what the estimate before this one, on the same task, has left.
        early: how much each measurement but the last has left of its equal weight, from 1 to 0;
            the last one has the rest (the multi-step loss of MAML++, Antoniou et al. 2019).
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
    damping: float = 0.0
    memory: Memory | None = None
    early: float = 1.0

    def weight(self, step: int) -> float:
        """Returns the weight of a measurement in the episode's reward.

        Args:
            step: after which inner step it is taken, one of ``measured``.
        """
        early = self.early / len(self.measured)
        return early if step != self.measured[-1] else 1 - early * (len(self.measured) - 1)

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
            pull=Pull(self.damping, self.start.theta) if self.damping else None,
            seed=self.seed,
        )
        yield from enumerate(walk, start=steps.start + 1)

    def score(self, theta: Tensors, step: int) -> tuple[Tensor, Tensor]:
        """Returns the logits on the query set, and the reward of them.

        Args:
            theta: the adapting parameters.
            step: inner steps that they have taken.

        Raises:
            UsageError: if the reward is not one number.
        """
        query = self.task.query
        # Another number than the inner steps have, whose rows are others.
        with dropping(self.learner, self.seed, self.task.index, step, 1):
            predictions = logits(self.learner, theta, query)
        reward = self.reward(predictions, query.labels)
        if not isinstance(reward, Tensor) or reward.dim():
            found = f"a tensor of shape {[*reward.shape]}" if isinstance(reward, Tensor) else reward
            raise UsageError(
                f"the reward {type(self.reward).__name__} gives {found}; return a tensor with one "
                "number, such as the mean over rows"
            )
        return predictions, reward

    def learned_held(self) -> Tensors:
        """Returns the learned parameters of the learner that do not adapt; empty but in ANIL."""
        held = self.learner.named_parameters()
        return {n: p for n, p in held if p.requires_grad and n not in self.start.theta}

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
        memory: what the next estimate needs where the task is not at its end, else None.
    """

    phi: Tensors
    theta: Tensors
    reward: Tensor
    logits: Tensor
    adapted: Adapted
    memory: Memory | None = None


class Estimator:
    """A way to get the gradient of the expected reward by phi.

    Attributes:
        second_order: whether it differentiates through the gradients of the inner steps.
        learns_held: whether it can learn parameters of the learner that do not adapt.
        anneals: whether it heeds the weights of an episode's measurements.
        remembers: whether an episode takes several estimates, with a :class:`Memory` in between.
        damping: strength of the proximal term that it adds to the inner loop, 0 for none.
    """

    second_order = False
    learns_held = False
    anneals = False
    remembers = False
    damping: float = 0.0

    def __call__(self, episode: Episode) -> Estimate:
        """Plays an episode and estimates the gradient."""
        raise NotImplementedError

    def play(self, episodes: Sequence[Episode]) -> list[Estimate]:
        """Plays the episodes of an outer step, by default one after another.

        Args:
            episodes: one a task.

        Returns:
            One estimate a task, of which the mean counts.
        """
        return [self(episode) for episode in episodes]

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
            UsageError: with a sentence that names what would serve instead; by default none.
        """

    def check_learner(self, learner: Learner) -> None:
        """Refuses learners that this estimator can't serve; by default it serves all.

        Args:
            learner: the base classifier, once it is built.

        Raises:
            UsageError: with a sentence that says what to give instead.
        """

    def check_rule(self, meta_learner: MetaLearner) -> None:
        """Refuses rules that this estimator can't learn; by default it takes all.

        Args:
            meta_learner: the update rule, once it is built.

        Raises:
            UsageError: with a sentence that names what would serve instead.
        """

    def check_share(self, parts: int) -> None:
        """Refuses to share one task's work among processes, as is the default.

        An estimator that can plays ``task.share`` of it, such that the mean over the processes is
        the estimate of one that plays all.

        Args:
            parts: processes a task, at least 2.

        Raises:
            UsageError: with a sentence that says what to give instead.
        """
        raise UsageError(
            f"{type(self).__name__} cannot share a task among {parts} processes; give {parts} "
            "times the --data.tasks_per_step, or the estimator EvolutionStrategies with "
            f"{parts} pairs"
        )

    def check_room(self, episode: Episode) -> None:
        """Refuses an episode that the machine has no room for; by default none.

        Args:
            episode: the first one of a run.

        Raises:
            UsageError: with a sentence that names the room needed, and what needs less.
        """


def refuse_phi(estimator: Estimator, meta_learner: MetaLearner) -> None:
    """Refuses a rule with a phi, which an estimator of the initial theta alone would never move.

    Args:
        estimator: which one.
        meta_learner: the update rule.

    Raises:
        UsageError: if the rule has something to learn.
    """
    if meta_learner.phi():
        raise UsageError(
            f"{type(estimator).__name__} learns the initial theta alone, and the phi of "
            f"{type(meta_learner).__name__} would never move; use a rule without phi such as SGD "
            "or Adam, or the estimator Unrolled"
        )


def windows(steps: int, truncation: int) -> Iterator[range]:
    """Yields the inner steps in windows that a meta-gradient flows through.

    A short one comes first: the last step is always measured, and its reward is to reach back over
    a whole window.

    Args:
        steps: number of inner steps K.
        truncation: length of a window, 0 for all steps in one.

    Example:
        >>> list(windows(5, 2))
        [range(0, 1), range(1, 3), range(3, 5)]
    """
    length = truncation or steps
    for end in range(steps % length or length, steps + 1, length):
        yield range(max(0, end - length), end)
