"""The first-order meta-gradient: the unrolled one without the Hessian."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_evolve.estimators.base import Episode, Estimate
from lightning_evolve.estimators.unrolled import Unrolled, unrolled


def first_order(episode: Episode, *, truncation: int = 0, checkpoint: int = 0) -> Estimate:
    r"""Differentiates the reward by phi with each support gradient held constant.

    Drops the term with the Hessian of the support loss from
    :math:`\partial \theta_{k+1} / \partial \theta_k` (FOMAML in Finn et al. 2017, section 5.2;
    Andrychowicz et al. 2016, section 2.1): for an LSTM about a quarter of the time and memory.

    Args:
        episode: what to play.
        truncation: inner steps that the gradient flows through, 0 for all.
        checkpoint: as in :func:`unrolled`.

    Returns:
        The approximate gradient by phi and, where asked, by the initial theta.
    """
    return unrolled(episode, truncation=truncation, checkpoint=checkpoint, graph="first_order")


@dataclass(frozen=True)
class FirstOrder(Unrolled):
    """The gradient through the inner steps without second derivatives.

    With a single inner step and an initial theta that is not learned there is no Hessian to drop,
    and it is exact.

    Args:
        truncation: inner steps that the gradient flows through, 0 for all K.
        checkpoint: as in :class:`Unrolled`.
        batched: as in :class:`Unrolled`.

    Raises:
        UsageError: if a number is negative.
    """

    second_order = False

    def __call__(self, episode: Episode) -> Estimate:
        """See :func:`first_order`."""
        return first_order(episode, truncation=self.truncation, checkpoint=self.checkpoint)
