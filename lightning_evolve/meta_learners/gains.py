"""Learned gains, sharing and schedule over an Adam-like direction: the default rule."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, named
from lightning_evolve.meta_learners.foreach import on_temporaries
from lightning_evolve.meta_learners.moments import TINY, Moments, adam_moments, check_adam
from lightning_evolve.meta_learners.roles import ROLES, roles
from lightning_evolve.meta_learners.statistics import progress
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

    With ``per="role"`` all tensors of one :func:`role <lightning_evolve.meta_learners.roles.role>`
    (embedding, matrix, norm and so on) share a gain and a sharing, and what is learned on one
    model serves another.

    Args:
        params: the parameters that will adapt.
        per: what has a gain and a sharing of its own, each ``"tensor"`` or each ``"role"``.
        horizon: inner steps over which the schedule is learned.
        knots: values that the schedule interpolates, at equal distances in log steps.
        betas: decays of Adam's moments.
        eps: added to the root.

    Raises:
        UsageError: if ``horizon`` is below 1, ``knots`` below 2, ``per`` neither of the two, or a
            number of Adam out of range.
    """

    accumulators = ("m", "v")

    def __init__(
        self,
        params: Tensors,
        *,
        per: Literal["tensor", "role"] = "tensor",
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
        if per not in ("tensor", "role"):
            raise UsageError(f"per is {per!r}; give tensor or role")
        check_adam(betas, eps)
        self.per, self.horizon, self.betas, self.eps = per, horizon, betas, eps
        self.roles = tuple(roles(params)) if per == "role" else ()
        self.learned = frozenset(self.roles)
        rows = [ROLES.index(r) for r in self.roles] or list(range(len(params)))
        # Where each tensor's numbers stand in phi.
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.int64), persistent=False)
        # 0 for a role that phi was not learned for, whose numbers are noise.
        self.register_buffer("known", torch.ones(len(params)), persistent=False)
        count = len(ROLES) if per == "role" else len(params)
        self.log_gains = nn.Parameter(torch.zeros(count))
        self.sharing = nn.Parameter(torch.zeros(count))
        self.log_schedule = nn.Parameter(torch.zeros(knots))

    rows: Tensor
    known: Tensor

    def over(self, params: Tensors) -> Self:
        """See :meth:`MetaLearner.over`; warns of roles that phi was not learned for."""
        other = super().over(params)
        if self.per == "tensor":
            places = self.places(params)
            rows, known = self.rows[places], self.known[places]
        else:
            other.roles = tuple(roles(params))
            told = self.learned.union(self.roles)
            unseen = {n: r for n, r in zip(params, other.roles, strict=True) if r not in told}
            if unseen:
                new = sorted(set(unseen.values()))
                warnings.warn(
                    f"{type(self).__name__} has learned nothing about tensors of the role "
                    f"{' or '.join(new)}, such as {next(iter(unseen))}; they have a gain of 1",
                    stacklevel=2,
                )
            rows = self.rows.new_tensor([ROLES.index(r) for r in other.roles])
            known = self.known.new_tensor([r in self.learned for r in other.roles])
        other.rows, other.known = rows, known
        return other

    def schedule(self, step: int) -> Tensor:
        """Returns the schedule's logarithm at an inner step, a scalar.

        Args:
            step: inner steps already taken.
        """
        position = progress(step, self.horizon) * (len(self.log_schedule) - 1)
        left = min(int(position), len(self.log_schedule) - 2)
        return torch.lerp(self.log_schedule[left], self.log_schedule[left + 1], position - left)

    def log_steps(self, grads: Tensors, params: Tensors, moments: Moments, state: State) -> Tensor:
        """Returns the logarithm of each tensor's step over alpha, shape ``[tensors]``.

        Args:
            grads: as of ``forward``.
            params: as of ``forward``.
            moments: Adam's, with these gradients.
            state: as of ``forward``.
        """
        return self.log_gains[self.rows] * self.known + self.schedule(state.step)

    def shares(self) -> Tensor:
        """Returns how far each tensor shares a normaliser, the w above, shape ``[tensors]``."""
        return self.sharing[self.rows] * self.known

    def mean_squares(self, second: list[Tensor]) -> Tensor:
        """Returns the mean of each tensor's second moment, shape ``[tensors]``.

        Args:
            second: the second moments.
        """
        return torch.stack([v.mean() for v in second])

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        moments = adam_moments(grads, state, self.betas, self.eps)
        # m_hat over the root of the tensor's mean v_hat: Adam's direction with one normaliser a
        # tensor, on the same scale.
        step, (beta1, beta2) = moments.state.step, self.betas
        correction1, correction2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
        root = self.mean_squares(moments.v).clamp_min(TINY).sqrt()
        shared = -(root * (correction1 / correction2) + correction1 * self.eps).reciprocal()
        gains = self.log_steps(grads, params, moments, state).exp()
        jointly = gains * self.shares()
        own = list((gains - jointly).unbind())
        direction = on_temporaries("mul", moments.direction, own)
        # Nothing remembers the product, so that it can be added to in place.
        torch._foreach_addcmul_(direction, moments.m, list((jointly * shared).unbind()))
        return named(self.names, direction), moments.state
