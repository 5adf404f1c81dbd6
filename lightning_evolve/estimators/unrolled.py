"""The exact meta-gradient: backpropagation through the inner steps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.base import (
    Episode,
    Estimate,
    Estimator,
    windows,
)
from lightning_evolve.estimators.batched import (
    all_at_once,
    check_batched_learner,
    check_batched_rule,
)
from lightning_evolve.estimators.room import graph_bytes, machine_bytes
from lightning_evolve.inner_loop import (
    Adapted,
    Graph,
    detached,
    detached_state,
    tensors_of,
    with_tensors,
)
from lightning_evolve.learners.base import Learner
from lightning_evolve.meta_learners.base import MetaLearner
from lightning_evolve.rewards import Reward


def unrolled(
    episode: Episode, *, truncation: int = 0, checkpoint: int = 0, graph: Graph = "full"
) -> Estimate:
    r"""Differentiates the reward through the inner steps (Maclaurin et al. 2015; Finn et al. 2017).

    .. math::
        \frac{dR}{d\phi} = \sum_k \frac{\partial R}{\partial \theta_K}
        \frac{\partial \theta_K}{\partial \theta_{k+1}} \, \alpha \,
        \frac{\partial g_\phi}{\partial \phi}\Big|_k

    where each :math:`\partial \theta_{k+1} / \partial \theta_k` carries the Hessian of the support
    loss. With a truncation, theta and the rule's state are cut from the graph every so many
    steps, and the memory of a window is given back before the next one begins.

    With ``checkpoint``, theta and the rule's state are kept at the ends of segments of so many
    steps, and the graph of one segment at a time is made, by playing it once more (Griewank and
    Walther 2000; Chen et al. 2016): the same numbers bit for bit for K/checkpoint copies of theta
    and its state and the graph of ``checkpoint`` steps.

    Args:
        episode: what to play.
        truncation: inner steps that the gradient flows through, 0 for all.
        checkpoint: inner steps of a segment, 0 to keep the graph of all.
        graph: ``"full"`` for the exact gradient, ``"first_order"`` to drop the Hessian.

    Returns:
        The gradient of the reward by phi and, where asked, by the initial theta.
    """
    phi = episode.meta_learner.phi()
    initial = {**episode.learned_theta(), **episode.learned_held()}
    sources = [*phi.values(), *initial.values()]
    totals: list[Tensor | None] = [None] * len(sources)
    rewards: list[Tensor] = []
    adapted, final = episode.start, None
    with torch.enable_grad():
        for window in windows(episode.steps, truncation):
            if window.start > 0 or not initial:
                adapted = _cut(adapted, graph)
            played = _differentiate(episode, adapted, window, checkpoint, graph, sources)
            adapted = played.adapted
            final = played.logits if played.logits is not None else final
            rewards += played.rewards
            totals = [
                _sum(total, gradient)
                for total, gradient in zip(totals, played.gradients, strict=True)
            ]
    # A source that no reward depends on.
    found = [torch.zeros_like(s) if t is None else t for s, t in zip(sources, totals, strict=True)]
    assert final is not None, "the last step is always measured"
    return Estimate(
        phi=dict(zip(phi, found, strict=False)),
        theta=dict(zip(initial, found[len(phi) :], strict=True)),
        reward=torch.stack(rewards).sum(),
        logits=final,
        adapted=adapted,
    )


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two gradients, of which None is zero."""
    return b if a is None else a if b is None else a + b


class _Played(NamedTuple):
    """Some inner steps: the learner after them, the last logits, rewards, gradients by sources."""

    adapted: Adapted
    logits: Tensor | None
    rewards: list[Tensor]
    gradients: list[Tensor | None]


def _differentiate(
    episode: Episode,
    start: Adapted,
    window: range,
    checkpoint: int,
    graph: Graph,
    sources: list[Tensor],
) -> _Played:
    """Plays a window, and differentiates its rewards from the last segment to the first."""
    length = checkpoint or len(window)
    segments = [window[i : i + length] for i in range(0, len(window), length)]
    starts = [start]
    for segment in segments[:-1]:
        starts.append(_without_graph(episode, starts[-1], segment, graph))
    gradients: list[Tensor | None] = [None] * len(sources)
    by_end: list[Tensor | None] = []
    rewards: list[Tensor] = []
    adapted = final = None
    for segment in reversed(segments):
        begin = starts.pop()
        inputs = tensors_of(begin) if starts else []
        end, out, scored = _play(episode, begin, segment, graph)
        if adapted is None:
            adapted = _cut(end, "none")
        final = out.detach() if final is None and out is not None else final
        rewards = [reward.detach() for reward in scored] + rewards
        objective = [torch.stack(scored).sum()] if scored else []
        # What later segments give to a source is where this one's sum begins, so that it is added
        # up over steps as in the whole graph: the order decides a floating-point sum.
        outputs = [*objective, *(tensors_of(end) if by_end else []), *sources]
        by_output = [*(torch.ones_like(o) for o in objective), *by_end, *gradients]
        reached = [
            (output, by)
            for output, by in zip(outputs, by_output, strict=True)
            if by is not None and output.requires_grad
        ]
        if reached and sources:
            found = torch.autograd.grad(
                [output for output, _ in reached],
                [*sources, *(t for t in inputs if t.requires_grad)],
                [by for _, by in reached],
                allow_unused=True,
            )
            gradients, rest = list(found[: len(sources)]), iter(found[len(sources) :])
            by_end = [next(rest) if t.requires_grad else None for t in inputs]
        # Else the graph of this segment would live on beside that of the next.
        del end, out, scored, objective, outputs, reached
    assert adapted is not None, "a window has at least one step"
    return _Played(adapted, final, rewards, gradients)


def _play(
    episode: Episode, begin: Adapted, steps: range, graph: Graph
) -> tuple[Adapted, Tensor | None, list[Tensor]]:
    """Takes inner steps with one graph: the end, the last logits measured, weighted rewards."""
    end, out, rewards = begin, None, []
    for k, end in episode.walk(begin, steps, graph):
        if k in episode.measured:
            out, reward = episode.score(end.theta, k)
            rewards.append(episode.weight(k) * reward)
    return end, out, rewards


def _without_graph(episode: Episode, begin: Adapted, steps: range, graph: Graph) -> Adapted:
    """Takes the same inner steps and forgets the graph of each.

    The graph is made all the same, and what would ask for a gradient does: without, some learners
    and rules take other operations, whose numbers differ in the last digits.
    """
    end = begin
    for k in steps:
        ((_, end),) = episode.walk(end, range(k, k + 1), graph)
        leaves = (t.detach().requires_grad_(t.requires_grad) for t in tensors_of(end))
        end = with_tensors(end, leaves)
    return end


def _cut(adapted: Adapted, graph: Graph) -> Adapted:
    """The same learner at the start of a graph of its own."""
    return Adapted(
        detached(adapted.theta, requires_grad=graph == "full"), detached_state(adapted.state)
    )


@dataclass(frozen=True)
class Unrolled(Estimator):
    """The exact gradient through all inner steps, or through windows of them.

    Args:
        truncation: inner steps that the gradient flows through, 0 for all K. Memory grows with
            it; a short one is blind to what pays off later (Wu et al. 2018).
        checkpoint: inner steps between two checkpoints, 0 for none. The gradient is the same and
            takes 1.0 to 1.3 times as long; instead of the graph of all steps there is that of so
            many at a time, and a copy of theta and the rule's state for each. From 1 to the root
            of K is best.
        batched: play all tasks of an outer step at once, which takes the memory of all their graphs
            together: on one CPU core 1.4 to 3.7 times as fast for Head, 1.5 to 1.9 for CNN on 16x16
            pixels with 8 and 16 channels, 1.05 on 28x28 with 32 and 64. For learners and rules that
            :mod:`lightning_evolve.estimators.batched` knows, and tasks of the same shapes.

    Raises:
        UsageError: if a number is negative.
    """

    truncation: int = 0
    checkpoint: int = 0
    batched: bool = False
    second_order = True
    learns_held = True
    anneals = True

    def __post_init__(self) -> None:
        """Checks the signs."""
        if self.truncation < 0:
            raise UsageError(
                f"truncation is {self.truncation}; give 0 for all inner steps, or 1 to K"
            )
        if self.checkpoint < 0:
            raise UsageError(
                f"checkpoint is {self.checkpoint}; give 0 for none, or the inner steps between two"
            )

    def __call__(self, episode: Episode) -> Estimate:
        """See :func:`unrolled`."""
        return unrolled(episode, truncation=self.truncation, checkpoint=self.checkpoint)

    def play(self, episodes: Sequence[Episode]) -> list[Estimate]:
        """See :meth:`Estimator.play`."""
        return all_at_once(self, episodes) if self.batched else super().play(episodes)

    def check_learner(self, learner: Learner) -> None:
        """See :meth:`Estimator.check_learner`."""
        if self.batched:
            check_batched_learner(learner)

    def check_rule(self, meta_learner: MetaLearner) -> None:
        """See :meth:`Estimator.check_rule`."""
        if self.batched:
            check_batched_rule(meta_learner)

    def check(
        self, *, reward: Reward, steps: int, measured: tuple[int, ...], learn_init: bool
    ) -> None:
        """See :meth:`Estimator.check`."""
        if not reward.differentiable:
            raise UsageError(
                f"{type(self).__name__} differentiates the reward, and {type(reward).__name__} "
                "has no gradient; use the estimator EvolutionStrategies, or the reward NegativeLoss"
            )
        if self.truncation > steps:
            raise UsageError(
                f"truncation is {self.truncation} and there are {steps} inner steps; "
                "lower it to at most that, or give 0 for all of them"
            )
        parts = list(windows(steps, self.truncation))
        if learn_init and min(measured) > parts[0].stop:
            raise UsageError(
                f"a learned initial theta gets no gradient: with truncation {self.truncation} it "
                f"comes from the first {parts[0].stop} inner steps, and the reward is first "
                f"measured after step {min(measured)}; raise truncation or measurements"
            )
        blind = [part for part in parts if not any(k + 1 in measured for k in part)]
        if blind:
            warnings.warn(
                f"truncation is {self.truncation}, and no reward is measured in {len(blind)} of "
                f"the {len(parts)} windows of so many inner steps, from which nothing is learned; "
                f"raise measurements (now {len(measured)}) or truncation",
                stacklevel=2,
            )
        window = self.truncation or steps
        if self.checkpoint >= window:
            warnings.warn(
                f"checkpoint is {self.checkpoint} and the gradient flows through {window} inner "
                "steps: nothing is saved; give fewer, or 0",
                stacklevel=2,
            )

    def check_room(self, episode: Episode) -> None:
        """See :meth:`Estimator.check_room`."""
        graph: Graph = "full" if self.second_order else "first_order"
        window = min(self.truncation or episode.steps, episode.steps)
        kept = min(self.checkpoint or window, window)
        needed = kept * graph_bytes(episode, graph)
        if (there := machine_bytes(episode)) and needed > there:
            less = "fewer inner steps between checkpoints" if self.checkpoint else "checkpoint: 1"
            raise UsageError(
                f"the graph of {kept} inner steps needs about {needed / 2**30:.1f} GiB, and the "
                f"device has {there / 2**30:.1f}; give the estimator {type(self).__name__} "
                f"{less}, fewer --steps, or use EvolutionStrategies, which keeps no graph"
            )
