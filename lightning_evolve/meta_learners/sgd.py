"""Gradient descent, plain and with momentum: rules without phi."""

from __future__ import annotations

import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, named
from lightning_evolve.tasks import Tensors


class SGD(MetaLearner):
    r"""Steepest descent, :math:`d = -g`.

    Args:
        params: the parameters that will adapt.

    Example:
        >>> theta = {"w": torch.tensor([1.0])}
        >>> rule = SGD(theta)
        >>> rule({"w": torch.tensor([0.5])}, theta, rule.init(theta))[0]
        {'w': tensor([-0.5000])}
    """

    elementwise = True

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        direction = torch._foreach_neg(list(grads.values()))
        return named(self.names, direction), State(state.step + 1, {})


class Momentum(MetaLearner):
    r"""Heavy ball (Polyak 1964): :math:`m \leftarrow \mu m + g`, :math:`d = -m`, as torch's SGD.

    Args:
        params: the parameters that will adapt.
        momentum: the decay mu, in 0..1.

    Raises:
        UsageError: if ``momentum`` is outside 0..1.
    """

    elementwise = True
    accumulators = ("m",)

    def __init__(self, params: Tensors, *, momentum: float = 0.9) -> None:
        super().__init__(params)
        if not 0 <= momentum < 1:
            raise UsageError(f"momentum is {momentum}; give a number from 0 to below 1")
        self.momentum = momentum

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        m = torch._foreach_mul(list(state.accumulators["m"].values()), self.momentum)
        m = torch._foreach_add(m, list(grads.values()))
        direction = named(self.names, torch._foreach_neg(m))
        return direction, State(state.step + 1, {"m": named(self.names, m)})
