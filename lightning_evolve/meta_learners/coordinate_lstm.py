"""A small LSTM that every coordinate runs with a state of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, check_scale, named
from lightning_evolve.meta_learners.flat import chunks, flatten, unflatten
from lightning_evolve.meta_learners.moments import adam_moments
from lightning_evolve.tasks import Tensors

_LAYERS = 2
# Coordinates that go through the cells at once where no graph is kept: their gates stay in cache.
_CHUNK = 2048


def log_sign(gradient: Tensor, p: float = 10.0) -> Tensor:
    r"""Splits a number into the size of its logarithm and its sign.

    .. math::
        \left(\tfrac{1}{p} \log |g|, \; \mathrm{sgn}(g)\right) \text{ where } |g| \ge e^{-p},
        \quad \text{else } (-1, \; e^p g)

    Gradients differ by orders of magnitude, which no network takes in as they are (Andrychowicz
    et al. 2016, appendix A).

    Args:
        gradient: any shape.
        p: how many e-folds below 1 are still told apart.

    Returns:
        The two features, shape ``[2, ...]``.

    Example:
        >>> log_sign(torch.tensor([-1.0, 0.0]))
        tensor([[ 0., -1.],
                [-1.,  0.]])
    """
    least = math.exp(-p)
    size = gradient.abs().clamp_min(least).log() / p
    return torch.stack([size, (gradient / least).clamp(-1, 1)])


class CoordinateLSTM(MetaLearner):
    r"""An LSTM of two layers, shared over coordinates (Andrychowicz et al. 2016).

    .. math::
        d = e^{c \, o_1} \cdot \mathrm{Adam} + c \, o_2, \qquad
        (o, h) \leftarrow \mathrm{LSTM}(\mathrm{logsign}(g), h)

    Each coordinate sees its gradient as :func:`log_sign` and keeps the hidden state h of its own:
    four times ``hidden_size`` numbers for each parameter, which is what this rule costs. The paper
    has the term with o_2 alone and starts at random; here the last layer starts at zero and the
    rule at exactly Adam.

    Args:
        params: the parameters that will adapt.
        hidden_size: units of each layer, 20 in the paper.
        scale: the constant c, 0.1 in the paper.

    Raises:
        UsageError: if ``hidden_size`` is below 1 or ``scale`` not positive.
    """

    hidden_states = tuple(f"{kind}{layer}" for layer in range(_LAYERS) for kind in "hc")

    def __init__(self, params: Tensors, *, hidden_size: int = 20, scale: float = 0.1) -> None:
        super().__init__(params)
        if hidden_size < 1:
            raise UsageError(f"hidden_size is {hidden_size}; give at least 1")
        check_scale(scale)
        self.hidden_size, self.scale = hidden_size, scale
        self.cells = nn.ModuleList(
            [nn.LSTMCell(2 if i == 0 else hidden_size, hidden_size) for i in range(_LAYERS)]
        )
        self.head = nn.Linear(hidden_size, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def init(self, params: Tensors) -> State:
        """See :class:`MetaLearner`; a hidden state has a leading dimension of ``hidden_size``."""
        zeros = {n: {name: torch.zeros_like(p) for name, p in params.items()} for n in ("m", "v")}
        for n in self.hidden_states:
            zeros[n] = {name: p.new_zeros(self.hidden_size, *p.shape) for name, p in params.items()}
        return State(0, zeros)

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        moments = adam_moments(grads, state)
        gradients = list(grads.values())
        flat = flatten(gradients)
        hidden = [
            torch.cat(
                [t.reshape(self.hidden_size, -1) for t in state.accumulators[n].values()], dim=1
            )
            for n in self.hidden_states
        ]
        parts = [
            self._run(flat[part], [h[:, part] for h in hidden])
            for part in chunks(len(flat), _CHUNK)
        ]
        out, *hidden = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
        update = torch.addcmul(out[1], out[0].exp(), flatten(moments.direction))
        accumulators = dict(moments.state.accumulators)
        sizes = [g.numel() for g in gradients]
        for name, value in zip(self.hidden_states, hidden, strict=True):
            split = torch.split(value, sizes, dim=1)
            accumulators[name] = {
                n: part.reshape(self.hidden_size, *g.shape)
                for (n, g), part in zip(grads.items(), split, strict=True)
            }
        direction = named(self.names, unflatten(update, gradients))
        return direction, State(moments.state.step, accumulators)

    def _run(self, gradient: Tensor, hidden: list[Tensor]) -> list[Tensor]:
        """One step of the network on ``[coordinates]``: scaled output and new hidden states."""
        features, following = log_sign(gradient), []
        for cell, h, c in zip(self.cells, hidden[::2], hidden[1::2], strict=True):
            features, c = lstm_cell(cell, features, h, c)
            following += [features, c]
        bias, weight = self.head.bias[:, None] * self.scale, self.head.weight * self.scale
        return [torch.addmm(bias, weight, features), *following]


def lstm_cell(
    cell: nn.Module, inputs: Tensor, hidden: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """What an ``nn.LSTMCell`` computes, by operations that can be differentiated twice everywhere.

    Coordinates come last, so that each gate is one contiguous piece of memory.

    Args:
        cell: holds the weights.
        inputs: shape ``[features, coordinates]``.
        hidden: shape ``[units, coordinates]``.
        memory: the cell's state, shape ``[units, coordinates]``.

    Returns:
        The new hidden state and the new state of the cell.
    """
    assert isinstance(cell, nn.LSTMCell), "the module list holds nothing else"
    bias = (cell.bias_ih + cell.bias_hh)[:, None]
    gates = torch.addmm(torch.addmm(bias, cell.weight_ih, inputs), cell.weight_hh, hidden)
    take, keep, new, show = gates.chunk(4)
    memory = torch.addcmul(keep.sigmoid() * memory, take.sigmoid(), new.tanh())
    return show.sigmoid() * memory.tanh(), memory
