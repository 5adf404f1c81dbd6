"""Meta-SGD: gradient descent with learned rates."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, named
from lightning_evolve.tasks import Tensors


class MetaSGD(MetaLearner):
    r"""A learned rate for each coordinate or tensor, and for each inner step if asked for.

    .. math:: d = - r_{\min(k, S - 1)} \odot g

    With a rate for each coordinate and the initial theta learned too this is Meta-SGD (Li et al.
    2017), whose rates are :math:`\alpha r`; with one for each tensor and step it is the
    per-layer per-step rate of MAML++ (Antoniou et al. 2019). All r start at 1: exactly gradient
    descent at alpha. They may become negative, as in the paper.

    Args:
        params: the parameters that will adapt.
        per: what has a rate of its own.
        steps: inner steps S that have rates of their own; later ones take the last. 1 shares
            the rates over all steps.

    Raises:
        UsageError: if ``steps`` is below 1 or ``per`` is neither of the two.

    Example:
        >>> theta = {"w": torch.tensor([1.0, 2.0])}
        >>> rule = MetaSGD(theta)
        >>> with torch.no_grad():
        ...     rule({"w": torch.tensor([0.5, -2.0])}, theta, rule.init(theta))[0]
        {'w': tensor([-0.5000,  2.0000])}
    """

    elementwise = True

    def __init__(
        self,
        params: Tensors,
        *,
        per: Literal["coordinate", "tensor"] = "coordinate",
        steps: int = 1,
    ) -> None:
        super().__init__(params)
        if steps < 1:
            raise UsageError(
                f"steps is {steps}; give 1 for rates that all steps share, or the inner steps K"
            )
        if per not in ("coordinate", "tensor"):
            raise UsageError(f"per is {per!r}; give coordinate or tensor")
        self.rates = nn.ParameterList(
            torch.ones(steps, *(p.shape if per == "coordinate" else ())) for p in params.values()
        )

    def over(self, params: Tensors) -> Self:
        """See :meth:`MetaLearner.over`."""
        other = super().over(params)
        other.rates = nn.ParameterList(self.rates[place] for place in self.places(params))
        return other

    def at(self, step: int) -> list[Tensor]:
        """Returns the rates of an inner step in units of alpha, in the order of the parameters.

        Args:
            step: inner steps already taken.
        """
        return [rates[min(step, len(rates) - 1)] for rates in self.rates]

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        scaled = torch._foreach_mul(list(grads.values()), self.at(state.step))
        return named(self.names, torch._foreach_neg(scaled)), State(state.step + 1, {})
