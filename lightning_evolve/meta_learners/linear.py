"""The linear meta-learner of the original sketch, made to work."""

from __future__ import annotations

import torch
from torch import nn

from lightning_evolve.meta_learners.base import MetaLearner, State, named
from lightning_evolve.meta_learners.features import normalise
from lightning_evolve.meta_learners.moments import adam_moments
from lightning_evolve.tasks import Tensors


class Linear(MetaLearner):
    r"""One linear layer on each coordinate's gradient, shared over all coordinates.

    .. math:: d = w_1 \frac{g}{\mathrm{rms}(g)} + w_2 \frac{m}{\mathrm{rms}(m)}
        + w_3 \frac{\hat m}{\sqrt{\hat v} + \epsilon}

    A layer from all gradients to all updates, as one first thinks of it, has P^2 weights and
    sees gradients whose scale changes by orders of magnitude; sharing the weights over
    coordinates and normalising each tensor by its root mean square mends both. It starts at
    w = (0, 0, -1): exactly Adam.

    Args:
        params: the parameters that will adapt.
    """

    accumulators = ("m", "v")

    def __init__(self, params: Tensors) -> None:
        super().__init__(params)
        self.layer = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.0, 0.0, -1.0]]))

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        moments = adam_moments(grads, state)
        by_gradient, by_momentum, by_adam = self.layer.weight[0].unbind()
        direction = torch._foreach_mul(normalise(list(grads.values())), by_gradient)
        direction = torch._foreach_add(
            direction, torch._foreach_mul(normalise(moments.m), by_momentum)
        )
        # moments.direction carries Adam's minus sign already.
        direction = torch._foreach_add(direction, torch._foreach_mul(moments.direction, -by_adam))
        return named(self.names, direction), moments.state
