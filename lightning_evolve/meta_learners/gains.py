"""Learned per-tensor gains and a learned schedule over Adam's direction: the default rule."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, named
from lightning_evolve.meta_learners.moments import adam_moments
from lightning_evolve.tasks import Tensors


class Gains(MetaLearner):
    r"""A gain for each tensor and a schedule over progress, both learned, on Adam's direction.

    .. math:: d_n = \exp(\phi_n + s(p)) \cdot \mathrm{Adam}_n, \qquad
        p = \min\left(1, \frac{\log(1 + k)}{\log(1 + \mathrm{horizon})}\right)

    with :math:`s` piecewise linear between learned knots. Per-tensor gains are Meta-SGD's rates
    (Li et al. 2017) shared within a tensor; with :math:`\phi = 0` the rule is exactly Adam, so
    the first day is no worse than Adam at the same alpha. Progress stops at the horizon: beyond
    it the last rate stays, which keeps unrolls longer than the trained one stable.

    Args:
        params: the parameters that will adapt.
        horizon: inner steps over which the schedule is learned.
        knots: values that the schedule interpolates, at equal distances in log steps.
        betas: decays of Adam's moments.
        eps: added to the root.

    Raises:
        UsageError: if ``horizon`` is below 1 or ``knots`` below 2.
    """

    accumulators = ("m", "v")

    def __init__(
        self,
        params: Tensors,
        *,
        horizon: int = 100,
        knots: int = 5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params)
        if horizon < 1 or knots < 2:
            raise UsageError(
                f"horizon is {horizon} and knots is {knots}; give at least 1 and at least 2"
            )
        self.horizon, self.betas, self.eps = horizon, betas, eps
        self.log_gains = nn.Parameter(torch.zeros(len(params)))
        self.log_schedule = nn.Parameter(torch.zeros(knots))

    def schedule(self, step: int) -> Tensor:
        """Returns the schedule's logarithm at an inner step, a scalar.

        Args:
            step: inner steps already taken.
        """
        progress = min(1.0, math.log1p(step) / math.log1p(self.horizon))
        position = progress * (len(self.log_schedule) - 1)
        left = min(int(position), len(self.log_schedule) - 2)
        return torch.lerp(self.log_schedule[left], self.log_schedule[left + 1], position - left)

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        moments = adam_moments(grads, state, self.betas, self.eps)
        gains = (self.log_gains + self.schedule(state.step)).exp()
        direction = torch._foreach_mul(moments.direction, list(gains.unbind()))
        return named(self.names, direction), moments.state
