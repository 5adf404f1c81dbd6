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
        eps: added to the root of Adam's second moment.
    """

    accumulators = ("m", "v")

    def __init__(self, params: Tensors, *, eps: float = 1e-8) -> None:
        super().__init__(params)
        self.eps = eps
        self.layer = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.0, 0.0, -1.0]]))

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        moments = adam_moments(grads, state, eps=self.eps)
        # moments.direction carries Adam's minus sign already.
        sign = torch.tensor([1.0, 1.0, -1.0]).to(self.layer.weight)
        terms = (normalise(list(grads.values())), normalise(moments.m), moments.direction)
        weights = (self.layer.weight[0] * sign).unbind()
        products = [
            torch._foreach_mul(term, [weight] * len(term))
            for term, weight in zip(terms, weights, strict=True)
        ]
        direction = torch._foreach_add(torch._foreach_add(products[0], products[1]), products[2])
        return named(self.names, direction), moments.state
