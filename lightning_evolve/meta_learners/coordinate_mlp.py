"""A small network that turns each coordinate's features into its update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, named
from lightning_evolve.meta_learners.features import mean_of, root_mean_square, safe_divisor
from lightning_evolve.meta_learners.flat import as_matrix, chunks
from lightning_evolve.meta_learners.foreach import on_temporaries
from lightning_evolve.meta_learners.moments import adam_direction
from lightning_evolve.tasks import Tensors

_DECAYS = (0.9, 0.99, 0.999)
_TIMES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
_PER_COORDINATE, _PER_LINE = 16, 12
_EPS = 1e-6
# Coordinates that are squared, and that go through the network, at once where no graph is kept.
_SQUARED, _CHUNK = 1 << 16, 1 << 14


class _Seen(NamedTuple):
    """What the network sees of one tensor, as matrices of R rows and C columns.

    Args:
        gradient: ``[R, C]``.
        parameter: ``[R, C]``.
        momenta: one for each of the three decays, ``[3, R, C]``.
        second: the second moment with the last decay, ``[R, C]``.
        rows: factored second moments relative to their mean, ``[3, R, 1]``.
        columns: the same by column, ``[3, 1, C]``.
    """

    gradient: Tensor
    parameter: Tensor
    momenta: Tensor
    second: Tensor
    rows: Tensor
    columns: Tensor


class CoordinateMLP(MetaLearner):
    r"""An MLP shared over coordinates, on the features of ``small_fc_lopt`` (Metz et al. 2022).

    .. math:: d = e^{c \, o_1} \cdot \mathrm{Adam} + c \, o_2, \qquad o = \mathrm{MLP}(f)

    The 39 features f of a coordinate are

    - its gradient g, its parameter, and momenta m with decays 0.9, 0.99 and 0.999;
    - the second moment v with decay 0.999, :math:`1 / \sqrt v` and :math:`m / \sqrt v`;
    - second moments of its row r and column c with decays 0.9, 0.99 and 0.999 (Adafactor, Shazeer
      and Stern 2018), :math:`1 / \sqrt r`, :math:`1 / \sqrt c`, :math:`g / \sqrt{r c}` and
      :math:`m / \sqrt{r c}`;
    - progress, :math:`\tanh(k / t - 1)` for eleven times t from 1 to 100,000;

    all but the last divided by their root mean square over the tensor. Under the roots, moments
    are relative to their mean over the tensor, so that no scale of the gradient is left. A vector
    is a matrix of one column, and further dimensions count as columns. The paper's rule is the
    term with o_2 alone from random weights; here the last layer starts at zero: exactly Adam.

    With ``normalised`` the update of each tensor is brought to the root mean square of Adam's, as
    in Celo2 (whose two hidden layers of 8 are the default here): the network chooses where to go,
    and alpha and Adam how far.

    Args:
        params: the parameters that will adapt.
        hidden_size: width of the two hidden layers.
        scale: the constant c, which makes a step of beta on phi a small step of the update.
        normalised: whether the length of a tensor's update is Adam's.

    Raises:
        UsageError: if ``hidden_size`` is below 1.
    """

    def __init__(
        self,
        params: Tensors,
        *,
        hidden_size: int = 8,
        scale: float = 0.1,
        normalised: bool = False,
    ) -> None:
        super().__init__(params)
        if hidden_size < 1:
            raise UsageError(f"hidden_size is {hidden_size}; give at least 1")
        self.scale, self.normalised = scale, normalised
        last = nn.Linear(hidden_size, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.Linear(_PER_COORDINATE + _PER_LINE + len(_TIMES), hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            last,
        )

    def init(self, params: Tensors) -> State:
        """See :class:`MetaLearner`; the factored moments have the length of a row or column."""
        count = len(_DECAYS)
        matrices = {name: as_matrix(p) for name, p in params.items()}
        return State(
            0,
            {
                "momenta": {n: m.new_zeros(count, *m.shape) for n, m in matrices.items()},
                "v": {name: torch.zeros_like(p) for name, p in params.items()},
                "rows": {n: m.new_zeros(count, m.shape[0], 1) for n, m in matrices.items()},
                "columns": {n: m.new_zeros(count, 1, m.shape[1]) for n, m in matrices.items()},
            },
        )

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        gradients, step = [as_matrix(g) for g in grads.values()], state.step + 1
        first = next(iter(grads.values()))
        weights = 1 - first.new_tensor(_DECAYS)[:, None, None]

        def averaged(kind: str, values: Sequence[Tensor]) -> list[Tensor]:
            past = state.accumulators[kind].values()
            return [torch.lerp(p, v, weights) for p, v in zip(past, values, strict=True)]

        squares = torch._foreach_mul(gradients, gradients)
        momenta = averaged("momenta", gradients)
        rows = averaged("rows", [s.mean(dim=1, keepdim=True) for s in squares])
        columns = averaged("columns", [s.mean(dim=0, keepdim=True) for s in squares])
        past = [as_matrix(v) for v in state.accumulators["v"].values()]
        decayed = torch._foreach_mul(past, _DECAYS[-1])
        v = on_temporaries("addcmul", decayed, gradients, gradients, 1 - _DECAYS[-1])
        direction = []
        for i, (g, p) in enumerate(zip(gradients, params.values(), strict=True)):
            seen = _Seen(
                g,
                as_matrix(p),
                momenta[i],
                v[i],
                rows[i] / mean_of(rows[i]),
                columns[i] / mean_of(columns[i]),
            )
            direction.append(self._update(seen, step))
        if self.normalised:
            adam = adam_direction([m[0] for m in momenta], v, step)
            lengths = torch._foreach_div(root_mean_square(adam), root_mean_square(direction))
            direction = on_temporaries("mul", direction, lengths)
        shaped = [d.view_as(g) for d, g in zip(direction, grads.values(), strict=True)]
        second = [s.view_as(g) for s, g in zip(v, grads.values(), strict=True)]
        accumulators = {"momenta": momenta, "v": second, "rows": rows, "columns": columns}
        return named(self.names, shaped), State(
            step, {kind: named(self.names, values) for kind, values in accumulators.items()}
        )

    def _update(self, seen: _Seen, step: int) -> Tensor:
        """The update of one tensor, ``[R, C]``, at a step counted from 1."""
        first, second, last = (m for m in self.network if isinstance(m, nn.Linear))
        count, width = seen.gradient.shape
        inverse_rows, inverse_columns = _rsqrt(seen.rows), _rsqrt(seen.columns)
        by_row = torch.cat([seen.rows, inverse_rows]).flatten(1)
        by_column = torch.cat([seen.columns, inverse_columns]).flatten(1)
        mean = mean_of(seen.second)
        squares = torch.stack(
            [_squares(seen, part, mean) for part in chunks(count, max(1, _SQUARED // width))]
        ).sum(dim=0)
        inner, lines, progress = torch.split(
            first.weight, [_PER_COORDINATE, _PER_LINE, len(_TIMES)], dim=1
        )
        # The normalisers go into the weights, and what is constant along a row, along a column or
        # everywhere goes into the bias: no feature is ever stored for that.
        inner = inner / safe_divisor(squares / seen.gradient.numel()).sqrt()
        times = first.bias.new_tensor([math.tanh((step - 1) / time - 1) for time in _TIMES])
        constant = torch.addmv(first.bias, progress, times)
        row_weights, column_weights = lines.chunk(2, dim=1)
        by_row = (row_weights / safe_divisor(by_row.square().mean(dim=1)).sqrt()) @ by_row
        by_column = (
            column_weights / safe_divisor(by_column.square().mean(dim=1)).sqrt()
        ) @ by_column
        by_column = (by_column + constant[:, None])[:, None]
        weight, bias = last.weight * self.scale, last.bias[:, None] * self.scale
        parts = list(chunks(count, max(1, _CHUNK // width)))
        room = seen.gradient.new_empty(_PER_COORDINATE, parts[0].stop, width)
        updates = []
        for part in parts:
            f = _features(seen, part, mean, inverse_rows[:, part] * inverse_columns, room)
            hidden = (by_row[:, part, None] + by_column).flatten(1).addmm_(inner, f).relu_()
            hidden = torch.mm(second.weight, hidden).add_(second.bias[:, None]).relu_()
            gain, extra = torch.mm(weight, hidden).add_(bias).view(2, -1, width)
            (adam,) = adam_direction([seen.momenta[0, part]], [seen.second[part]], step)
            updates.append(torch.addcmul(extra, gain.exp(), adam))
        return updates[0] if len(updates) == 1 else torch.cat(updates)


def _features(seen: _Seen, part: slice, mean: Tensor, factors: Tensor, room: Tensor) -> Tensor:
    """The features that each coordinate has of its own, ``[16, coordinates]``.

    Written into ``room`` where no graph is kept; ``factors`` are 1 / sqrt(r c), a decay each.
    """
    g, p, momenta = seen.gradient[part], seen.parameter[part], seen.momenta[:, part]
    second = seen.second[part] / mean
    inverse = _rsqrt(second)
    if torch.is_grad_enabled():
        single = torch.stack([g, p, second, inverse])
        products = [single, momenta, momenta * inverse, g * factors, momenta * factors]
        return torch.cat(products).flatten(1)
    room = room[:, : len(g)]
    torch.stack([g, p, second, inverse], out=room[:4])
    room[4:7].copy_(momenta)
    torch.mul(momenta, inverse, out=room[7:10])
    torch.mul(g, factors, out=room[10:13])
    torch.mul(momenta, factors, out=room[13:16])
    return room.flatten(1)


def _squares(seen: _Seen, part: slice, mean: Tensor) -> Tensor:
    """The sum of squares of each of these features, without the features themselves."""
    g, p = seen.gradient[part].flatten(), seen.parameter[part].flatten()
    second = seen.second[part].flatten() / mean.flatten()
    inverse = (second + _EPS).reciprocal_()
    momenta = seen.momenta[:, part].square()
    flat = momenta.flatten(1)
    # The sum over rows and columns of x^2 / (r c) is a product of three matrices.
    by_row, by_column = 1 / (seen.rows[:, part] + _EPS), 1 / (seen.columns + _EPS)
    factored = (seen.gradient[part].square() @ by_column.flatten(1).T) * by_row.flatten(1).T
    with_momenta = (momenta @ by_column.mT * by_row).sum(dim=(1, 2))
    single = torch.stack([g @ g, p @ p, second @ second, inverse.sum()])
    return torch.cat([single, flat.sum(dim=1), flat @ inverse, factored.sum(dim=0), with_momenta])


def _rsqrt(relative_moment: Tensor) -> Tensor:
    return (relative_moment + _EPS).rsqrt()
