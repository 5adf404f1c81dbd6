"""The exact meta-gradient: backpropagation through the inner steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.base import (
    Episode,
    Estimate,
    Estimator,
    windows,
)
from lightning_evolve.inner_loop import (
    Adapted,
    Graph,
    detached,
    detached_state,
    logits,
)
from lightning_evolve.rewards import Reward


def unrolled(episode: Episode, *, truncation: int = 0, graph: Graph = "full") -> Estimate:
    r"""Differentiates the reward through the inner steps (Maclaurin et al. 2015; Finn et al. 2017).

    .. math::
        \frac{dR}{d\phi} = \sum_k \frac{\partial R}{\partial \theta_K}
        \frac{\partial \theta_K}{\partial \theta_{k+1}} \, \alpha \,
        \frac{\partial g_\phi}{\partial \phi}\Big|_k

    where each :math:`\partial \theta_{k+1} / \partial \theta_k` carries the Hessian of the support
    loss. With a truncation, theta and the rule's state are cut from the graph every so many
    steps, and the memory of a window is given back before the next one begins.

    Args:
        episode: what to play.
        truncation: inner steps that the gradient flows through, 0 for all.
        graph: ``"full"`` for the exact gradient, ``"first_order"`` to drop the Hessian.

    Returns:
        The gradient of the reward by phi and, where asked, by the initial theta.
    """
    phi, initial = episode.meta_learner.phi(), episode.learned_theta()
    sources = [*phi.values(), *initial.values()]
    totals = [torch.zeros_like(source) for source in sources]
    rewards: list[Tensor] = []
    query, adapted = episode.task.query, episode.start
    final = None
    with torch.enable_grad():
        for window in windows(episode.steps, truncation):
            if window.start > 0 or not initial:
                adapted = Adapted(
                    detached(adapted.theta, requires_grad=graph == "full"),
                    detached_state(adapted.state),
                )
            objective: list[Tensor] = []
            walk = episode.walk(adapted, window, graph)
            for k, adapted in walk:
                if k in episode.measured:
                    final = logits(episode.learner, adapted.theta, query)
                    objective.append(episode.reward(final, query.labels))
            if objective:
                total = torch.stack(objective).sum() / len(episode.measured)
                rewards.append(total.detach())
                if sources:
                    gradients = torch.autograd.grad(total, sources, materialize_grads=True)
                    totals = list(torch._foreach_add(totals, gradients))
    assert final is not None, "the last step is always measured"
    return Estimate(
        phi=dict(zip(phi, totals, strict=False)),
        theta=dict(zip(initial, totals[len(phi) :], strict=True)),
        reward=torch.stack(rewards).sum(),
        logits=final.detach(),
        adapted=Adapted(detached(adapted.theta), detached_state(adapted.state)),
    )


@dataclass(frozen=True)
class Unrolled(Estimator):
    """The exact gradient through all inner steps, or through windows of them.

    Args:
        truncation: inner steps that the gradient flows through, 0 for all K. Memory grows with
            it; a short one is blind to what pays off later (Wu et al. 2018).

    Raises:
        UsageError: if ``truncation`` is negative.
    """

    truncation: int = 0
    second_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the truncation's sign."""
        if self.truncation < 0:
            raise UsageError(
                f"truncation is {self.truncation}; give 0 for all inner steps, or 1 to K"
            )

    def __call__(self, episode: Episode) -> Estimate:
        """See :func:`unrolled`."""
        return unrolled(episode, truncation=self.truncation)

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
        if learn_init and self.truncation and min(measured) > self.truncation:
            raise UsageError(
                f"a learned initial theta gets no gradient: truncation is {self.truncation} and "
                f"the reward is first measured after step {min(measured)}; "
                "raise truncation or measurements"
            )
