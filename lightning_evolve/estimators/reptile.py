"""Reptile: an initial theta that is close to where tasks take it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.base import Episode, Estimate, Estimator, refuse_phi
from lightning_evolve.estimators.perturbation import play
from lightning_evolve.meta_learners.base import MetaLearner
from lightning_evolve.rewards import Reward


def reptile(episode: Episode) -> Estimate:
    r"""Takes the way that theta goes on a task as the gradient by the initial theta.

    .. math:: \nabla_{\theta_0} \approx \theta_K - \theta_0

    (Nichol et al. 2018, algorithm 2; the outer optimizer averages it over tasks and scales it.)
    Nothing is differentiated beyond the support gradients: memory does not grow with K, any reward
    will do, since it is reported only, and with K = 1 it is joint training on all tasks.

    Args:
        episode: what to play; all of its theta is learned.

    Returns:
        The direction by the initial theta, and none by phi.
    """
    reward, out, adapted = play(episode)
    initial = episode.learned_theta()
    with torch.no_grad():
        moved = torch._foreach_sub([adapted.theta[n] for n in initial], list(initial.values()))
    return Estimate(
        phi={},
        theta=dict(zip(initial, moved, strict=True)),
        reward=reward,
        logits=out,
        adapted=adapted,
    )


@dataclass(frozen=True)
class Reptile(Estimator):
    """The direction from the initial theta to the adapted one, for a learned initial theta."""

    def __call__(self, episode: Episode) -> Estimate:
        """See :func:`reptile`."""
        return reptile(episode)

    def check(
        self, *, reward: Reward, steps: int, measured: tuple[int, ...], learn_init: bool
    ) -> None:
        """See :meth:`Estimator.check`."""
        if not learn_init:
            raise UsageError(
                "Reptile learns the initial theta alone, and learn_init is false; give "
                "learn_init: true, or the estimator Unrolled to learn phi"
            )

    def check_rule(self, meta_learner: MetaLearner) -> None:
        """See :meth:`Estimator.check_rule`."""
        refuse_phi(self, meta_learner)
