"""The first-order meta-gradient: the unrolled one without the Hessian."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_evolve.estimators.base import Episode, Estimate, Estimator
from lightning_evolve.estimators.unrolled import check_differentiable, check_truncation, unrolled
from lightning_evolve.rewards import Reward


def first_order(episode: Episode, *, truncation: int = 0) -> Estimate:
    r"""Differentiates the reward by phi with each support gradient held constant.

    Drops the term with the Hessian of the support loss from
    :math:`\partial \theta_{k+1} / \partial \theta_k` (FOMAML in Finn et al. 2017, section 5.2;
    Andrychowicz et al. 2016, section 2.1): about a quarter of the time and a twelfth of the memory.

    Args:
        episode: what to play.
        truncation: inner steps that the gradient flows through, 0 for all.

    Returns:
        The approximate gradient by phi and, where asked, by the initial theta.
    """
    return unrolled(episode, truncation=truncation, graph="first_order")


@dataclass(frozen=True)
class FirstOrder(Estimator):
    """The gradient through the inner steps without second derivatives.

    Args:
        truncation: inner steps that the gradient flows through, 0 for all K.

    Raises:
        UsageError: if ``truncation`` is negative.
    """

    truncation: int = 0

    def __post_init__(self) -> None:
        """Checks the truncation's sign."""
        check_truncation(self.truncation)

    def __call__(self, episode: Episode) -> Estimate:
        """See :func:`first_order`."""
        return first_order(episode, truncation=self.truncation)

    def check(
        self, *, reward: Reward, steps: int, measured: tuple[int, ...], learn_init: bool
    ) -> None:
        """See :meth:`Estimator.check`."""
        check_differentiable(
            type(self).__name__, self.truncation, reward, steps, measured, learn_init
        )
