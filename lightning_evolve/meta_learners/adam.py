"""Adam and AdamW, with parameter groups: the rules to beat."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from typing_extensions import Self

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, named
from lightning_evolve.meta_learners.moments import adam_moments, check_adam
from lightning_evolve.tasks import Tensors


class Adam(MetaLearner):
    r"""Adam (Kingma and Ba 2015), optionally with parameter groups of different rates.

    .. math:: d = - r \, \frac{\hat m}{\sqrt{\hat v} + \epsilon} - \lambda \theta

    Args:
        params: the parameters that will adapt.
        betas: decays of the moments.
        eps: added to the root.
        weight_decay: decoupled decay lambda, per unit of alpha (Loshchilov and Hutter 2019).
        ratios: rate r of a parameter group over alpha, by a pattern of names such as
            ``{"embedding.*": 30.0}``; parameters that no pattern names have the ratio 1.

    Raises:
        UsageError: for a number out of range, or a pattern that names no parameter.
    """

    elementwise = True
    accumulators = ("m", "v")

    def __init__(
        self,
        params: Tensors,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        ratios: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(params)
        check_adam(betas, eps, weight_decay)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        for pattern in ratios or {}:
            if not any(fnmatchcase(name, pattern) for name in params):
                known = ", ".join(params)
                raise UsageError(f"ratios: {pattern!r} names none of the parameters {known}")
        self.patterns = dict(ratios or {})
        self.ratios = self._ratios(params)

    def over(self, params: Tensors) -> Self:
        """See :meth:`MetaLearner.over`."""
        other = super().over(params)
        other.ratios = self._ratios(params)
        return other

    def _ratios(self, params: Tensors) -> list[float]:
        """The rate of each tensor, which the first pattern that fits its name says."""
        fitting = ([r for p, r in self.patterns.items() if fnmatchcase(name, p)] for name in params)
        return [next(iter(ratios), 1.0) for ratios in fitting]

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        moments = adam_moments(grads, state, self.betas, self.eps)
        direction = moments.direction
        if self.patterns:
            direction = list(torch._foreach_mul(direction, self.ratios))
        if self.weight_decay:
            direction = list(
                torch._foreach_add(direction, list(params.values()), alpha=-self.weight_decay)
            )
        return named(self.names, direction), moments.state


class AdamW(Adam):
    """Adam with torch's default decoupled weight decay of 0.01 (Loshchilov and Hutter 2019).

    Args:
        params: the parameters that will adapt.
        betas: decays of the moments.
        eps: added to the root.
        weight_decay: decay per unit of alpha.
        ratios: as in :class:`Adam`.
    """

    def __init__(
        self,
        params: Tensors,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        ratios: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(params, betas=betas, eps=eps, weight_decay=weight_decay, ratios=ratios)
