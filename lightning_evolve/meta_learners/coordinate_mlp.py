"""A small network that turns each coordinate's features into its update."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, named
from lightning_evolve.meta_learners.features import normalise
from lightning_evolve.meta_learners.moments import TINY, adam_moments
from lightning_evolve.tasks import Tensors

_DECAYS = (0.5, 0.99)
_TIMES = (3.0, 10.0, 30.0, 100.0, 300.0)


class CoordinateMLP(MetaLearner):
    r"""An MLP shared over coordinates, on normalised features (Metz et al. 2022).

    .. math:: d = \exp(c \, o_1) \cdot \mathrm{Adam} + c \, o_2, \qquad o = \mathrm{MLP}(f)

    The features f of a coordinate are its gradient, momenta at several decays, Adam's direction,
    its parameter value and the Adafactor-style row and column second moments (Shazeer and Stern
    2018), each divided by its root mean square over the tensor, and progress as ``tanh(k / t)``
    at several times. The last layer starts at zero: exactly Adam.

    Args:
        params: the parameters that will adapt.
        hidden_size: width of the two hidden layers.
        scale: the constant c, which makes a step of beta on phi a small step of the update.

    Raises:
        UsageError: if ``hidden_size`` is below 1.
    """

    accumulators = ("m", "v", *(f"m_{decay}" for decay in _DECAYS))

    def __init__(self, params: Tensors, *, hidden_size: int = 32, scale: float = 0.1) -> None:
        super().__init__(params)
        if hidden_size < 1:
            raise UsageError(f"hidden_size is {hidden_size}; give at least 1")
        self.scale = scale
        features = 6 + len(_DECAYS) + len(_TIMES)
        last = nn.Linear(hidden_size, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.Linear(features, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            last,
        )

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        moments = adam_moments(grads, state)
        gradients, accumulators = list(grads.values()), dict(moments.state.accumulators)
        columns = [gradients, moments.m, list(params.values())]
        for decay in _DECAYS:
            past = list(state.accumulators[f"m_{decay}"].values())
            momentum = list(torch._foreach_lerp(past, gradients, 1 - decay))
            accumulators[f"m_{decay}"] = named(self.names, momentum)
            columns.append(momentum)
        rows, cols = zip(
            *(_factored(g, v) for g, v in zip(gradients, moments.v, strict=True)), strict=True
        )
        columns += [list(rows), list(cols)]
        flat = [_flatten(normalise(column)) for column in columns]
        adam = _flatten(moments.direction)
        progress = [math.tanh(moments.state.step / time) for time in _TIMES]
        features = torch.stack(
            [*flat, adam, *(torch.full_like(adam, value) for value in progress)], dim=-1
        )
        out = self.network(features) * self.scale
        update = out[:, 0].exp() * adam + out[:, 1]
        sizes = [g.numel() for g in gradients]
        parts = [u.view_as(g) for u, g in zip(update.split(sizes), gradients, strict=True)]
        return named(self.names, parts), State(moments.state.step, accumulators)


def _flatten(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _factored(gradient: Tensor, second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient over the root of its row's, and of its column's, mean second moment."""
    if gradient.dim() < 2:
        scaled = gradient / (second_moment + TINY).sqrt()
        return scaled, scaled
    by_row = second_moment.mean(dim=tuple(range(1, gradient.dim())), keepdim=True)
    by_column = second_moment.mean(dim=0, keepdim=True)
    return gradient / (by_row + TINY).sqrt(), gradient / (by_column + TINY).sqrt()
