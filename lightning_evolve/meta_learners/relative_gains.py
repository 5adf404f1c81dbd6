"""Learned gains on steps relative to a tensor's size: the rule to take along to other models."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_evolve.meta_learners.base import State
from lightning_evolve.meta_learners.gains import Gains
from lightning_evolve.meta_learners.moments import Moments
from lightning_evolve.meta_learners.statistics import STATISTICS, training_statistics
from lightning_evolve.tasks import Tensors

_EMBEDDING = 0.02  # an embedding counts as at least so large
_VECTOR = 0.03  # the size of biases and norms, of which many start at 0 or at 1
_SEEN = [STATISTICS.index(s) for s in STATISTICS if s.startswith(("signal", "agreement"))]


class RelativeGains(Gains):
    r"""`Gains` by role, on steps that are a share of what they change.

    .. math::
        d_n = e^{b \cdot f_n} \, \frac{r_n}{L} \, \mathrm{Gains}_n, \qquad
        r_n = \max\left(\mathrm{rms}(\theta_n), \frac{1}{\sqrt{3 \, \mathrm{inputs}}}\right)

    for a matrix, with 0.02 in place of the second for an embedding, and 0.03 for a vector.

    One alpha serves networks whose tuned Adam rates are a hundred times apart: a step is relative
    to the tensor (Adafactor, Shazeer and Stern 2018; LAMB, You et al. 2020), and the fewer matrices
    L adapt, the larger it is, since relative changes add up over layers (Bernstein et al. 2020).
    So alpha is the relative change of the whole network in a step, about 0.3 and not 0.001. A
    matrix counts as at least as large as torch draws it for its number of inputs: one that is zero,
    or was drawn small, would hardly move otherwise.

    The features f_n are two :func:`training statistics
    <lightning_evolve.meta_learners.statistics.training_statistics>`, signal and agreement: they say
    whether the gradients still point one way, whatever the network. The second moment that an
    embedding shares is the mean over the rows that were looked up, so that the size of the
    vocabulary does not matter.

    With phi = 0 the rule is Adam with such relative steps.

    Args:
        params: the parameters that will adapt.
        horizon: inner steps over which the schedule is learned.
        knots: values that the schedule interpolates, at equal distances in log steps.

    Raises:
        UsageError: if ``horizon`` is below 1 or ``knots`` below 2.
    """

    version: ClassVar[int] = 2

    def __init__(self, params: Tensors, *, horizon: int = 100, knots: int = 5) -> None:
        super().__init__(params, per="role", horizon=horizon, knots=knots)
        self.layers = _layers(params)
        self.response = nn.Parameter(torch.zeros(len(_SEEN)))

    def over(self, params: Tensors) -> Self:
        """See :meth:`MetaLearner.over`; L is that of the other model."""
        other = super().over(params)
        other.layers = _layers(params)
        return other

    def within(self, params: Tensors) -> Self:
        """See :meth:`MetaLearner.within`; L stays that of the whole model."""
        other = self.over(params)
        other.layers = self.layers
        return other

    def mean_squares(self, second: list[Tensor]) -> Tensor:
        """See :meth:`Gains.mean_squares`; of an embedding, over the rows that were looked up.

        Otherwise a vocabulary ten times as large, whose rows are never looked up, would make the
        steps of those that are three times as long.
        """
        means = super().mean_squares(second)
        looked_up = [
            (v.flatten(1).amax(dim=1) > 0).to(v.dtype).mean().clamp_min(1 / len(v))
            if role == "embedding"
            else v.new_ones(())
            for role, v in zip(self.roles, second, strict=True)
        ]
        return means / torch.stack(looked_up)

    def shares(self) -> Tensor:
        """See :meth:`Gains.shares`; never outside 0..1, where some coordinates would ascend.

        That can be right for the one network that it was learned on, and destroys others.
        """
        return super().shares().clamp(0, 1)

    def log_steps(self, grads: Tensors, params: Tensors, moments: Moments, state: State) -> Tensor:
        """See :meth:`Gains.log_steps`."""
        tensors = list(params.values())
        statistics = training_statistics(
            list(grads.values()), tensors, moments.m, moments.v, moments.state.step, self.betas
        )
        # The second statistic is a tenth of the logarithm of the root mean square.
        least = [_least(role, t) for role, t in zip(self.roles, tensors, strict=True)]
        sizes = (10 * statistics[:, 1]).maximum(statistics.new_tensor(least).log())
        vectors = torch.tensor([t.dim() < 2 for t in tensors], device=sizes.device)
        sizes = sizes.masked_fill(vectors, math.log(_VECTOR))
        gains = super().log_steps(grads, params, moments, state)
        features = 2 * statistics[:, _SEEN] - 1
        return gains + sizes + features @ self.response - math.log(self.layers)


def _least(role: str, tensor: Tensor) -> float:
    """The size that a tensor at least counts as having."""
    if tensor.dim() < 2:
        return _VECTOR
    return _EMBEDDING if role == "embedding" else (3 * max(1, tensor[:1].numel())) ** -0.5


def _layers(params: Tensors) -> int:
    """The number of matrices, one for each layer that changes what goes through the network."""
    return max(1, sum(p.dim() > 1 and p.numel() > 0 for p in params.values()))
