"""Learned gains, sharing and schedule over an Adam-like direction: the default rule."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, named
from lightning_evolve.meta_learners.moments import TINY, adam_moments
from lightning_evolve.tasks import Tensors


class Gains(MetaLearner):
    r"""A gain for each tensor, how far it shares a normaliser, and a schedule, all learned.

    .. math::
        d_n = - e^{a_n + s(p)} \, \hat m_n \left(\frac{1 - w_n}{\sqrt{\hat v_n} + \epsilon}
        + \frac{w_n}{\sqrt{\overline{\hat v_n}} + \epsilon}\right), \qquad
        p = \min\left(1, \frac{\log(1 + k)}{\log(1 + \mathrm{horizon})}\right)

    The gains a are Meta-SGD's rates (Li et al. 2017) shared within a tensor. The sharing w moves
    a tensor from Adam, with a second moment for each coordinate, towards one second moment for
    the whole tensor as in Adam-mini (Zhang et al. 2024), whose direction is that of momentum SGD.
    The schedule s is piecewise linear between learned knots. With phi = 0 the rule is exactly
    Adam, so the first day is no worse than Adam at the same alpha. Progress p stops at the
    horizon: beyond it the last rate stays, which keeps longer unrolls than the trained one stable.

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
        self.sharing = nn.Parameter(torch.zeros(len(params)))
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
        # m_hat over the root of the tensor's mean v_hat: Adam's direction with one normaliser a
        # tensor, on the same scale.
        step, (beta1, beta2) = moments.state.step, self.betas
        means = torch.stack([v.mean() for v in moments.v]) / (1 - beta2**step)
        shared = -1 / ((means.clamp_min(TINY).sqrt() + self.eps) * (1 - beta1**step))
        gains = (self.log_gains + self.schedule(state.step)).exp()
        direction = torch._foreach_add(
            torch._foreach_mul(moments.direction, list((gains * (1 - self.sharing)).unbind())),
            torch._foreach_mul(moments.m, list((gains * self.sharing * shared).unbind())),
        )
        return named(self.names, direction), moments.state
