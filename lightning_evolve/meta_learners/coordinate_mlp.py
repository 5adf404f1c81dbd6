"""A small network that turns each coordinate's features into its update."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, check_scale, named
from lightning_evolve.meta_learners.coordinate_mlp_compiled import compiled_step
from lightning_evolve.meta_learners.coordinate_mlp_in_place import (
    Network,
    Seen,
    overwrite_with_updates,
)
from lightning_evolve.meta_learners.features import (
    linear_on_normalised,
    mean_of,
    root_mean_square,
)
from lightning_evolve.meta_learners.flat import as_matrix
from lightning_evolve.meta_learners.moments import adam_direction, adam_moments
from lightning_evolve.tasks import Tensors

_DECAYS = (0.9, 0.99, 0.999)
_TIMES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
_PER_COORDINATE, _PER_LINE = 16, 6
_EPS = 1e-6


class CoordinateMLP(MetaLearner):
    r"""An MLP shared over coordinates, on the features of ``small_fc_lopt`` (Metz et al. 2022).

    .. math:: d = e^{c \, o_1} \cdot \mathrm{Adam} + c \, o_2, \qquad o = \mathrm{MLP}(f)

    The 39 features f of a coordinate are

    - its gradient g, its parameter, and momenta m with decays 0.9, 0.99 and 0.999 (the paper
      learns them from there on);
    - the second moment v with decay 0.999, :math:`1 / \sqrt v` and :math:`m / \sqrt v`;
    - second moments of its row r and column c with decays 0.9, 0.99 and 0.999 (Adafactor, Shazeer
      and Stern 2018), :math:`1 / \sqrt r`, :math:`1 / \sqrt c`, :math:`g / \sqrt{r c}` and
      :math:`m / \sqrt{r c}`;
    - progress, :math:`\tanh(k / t - 1)` for eleven times t from 1 to 100,000;

    all but the last divided by their root mean square over the tensor. Under the roots, moments
    are relative to their mean over the tensor, so that no scale of the gradient is left. A vector
    is a matrix of one column, and further dimensions count as columns. The paper's rule is the
    term with o_2 alone from random weights; here the last layer starts at zero: exactly Adam.

    With ``normalised`` the network chooses where to go, and not how far, as in Celo2 (2026), whose
    two hidden layers of 8 are the default here: there the update of each tensor is brought to a
    root mean square of 1, and here to that of Adam's. What else Celo2 has is left to other parts:
    AdamW for vectors and embeddings, orthogonal updates, and no progress among the features.

    Args:
        params: the parameters that will adapt.
        hidden_size: width of the two hidden layers.
        scale: the constant c, which makes a step of beta on phi a small step of the update.
        normalised: whether the length of a tensor's update is Adam's.

    Raises:
        UsageError: if ``hidden_size`` is below 1 or ``scale`` not positive.
    """

    compiled: bool | None = False

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
        check_scale(scale)
        self.scale, self.normalised = scale, normalised
        last = nn.Linear(hidden_size, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.Linear(_PER_COORDINATE + 2 * _PER_LINE + len(_TIMES), hidden_size),
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
                "v": {name: p.new_zeros(p.shape) for name, p in params.items()},
                "rows": {n: m.new_zeros(count, m.shape[0], 1) for n, m in matrices.items()},
                "columns": {n: m.new_zeros(count, 1, m.shape[1]) for n, m in matrices.items()},
            },
        )

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        if not torch.is_grad_enabled():
            return self._overwriting(grads, params, state)
        gradients, step = [as_matrix(g) for g in grads.values()], state.step + 1
        weights = self._weights(gradients[0])

        def averaged(kind: str, values: Sequence[Tensor]) -> list[Tensor]:
            past = state.accumulators[kind].values()
            return [torch.lerp(p, v, weights) for p, v in zip(past, values, strict=True)]

        squares = torch._foreach_mul(gradients, gradients)
        momenta = averaged("momenta", gradients)
        rows = averaged("rows", [s.mean(dim=1, keepdim=True) for s in squares])
        columns = averaged("columns", [s.mean(dim=0, keepdim=True) for s in squares])
        past = [as_matrix(v) for v in state.accumulators["v"].values()]
        v = torch._foreach_addcmul(
            torch._foreach_mul(past, _DECAYS[-1]), gradients, gradients, 1 - _DECAYS[-1]
        )
        adam = adam_direction([m[0] for m in momenta], v, step)
        network = self._network_at(step)
        direction = []
        for i, (g, p) in enumerate(zip(gradients, params.values(), strict=True)):
            seen = Seen(g, as_matrix(p), momenta[i], v[i], adam[i])
            direction.append(_update(network, seen, rows[i], columns[i]))
        if self.normalised:
            lengths = torch._foreach_div(root_mean_square(adam), root_mean_square(direction))
            direction = list(torch._foreach_mul(direction, lengths))
        second = [s.view_as(g) for s, g in zip(v, grads.values(), strict=True)]
        accumulators = {"momenta": momenta, "v": second, "rows": rows, "columns": columns}
        return self._shaped(direction, grads), State(
            step, {kind: named(self.names, values) for kind, values in accumulators.items()}
        )

    def _overwriting(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """The same where no graph is kept, compiled or not."""
        kept = state.accumulators
        if not state.donated:
            kept = {kind: {n: t.clone() for n, t in ts.items()} for kind, ts in kept.items()}
        grads = {name: g.contiguous() for name, g in grads.items()}
        if not self.compiled:
            direction, kept = self._in_place(grads, params, State(state.step, kept))
            return direction, State(state.step + 1, kept)
        direction = {}
        following = {kind: dict(ts) for kind, ts in kept.items()}
        # Vectors have few coordinates, and would be compiled anew.
        matrices = {n for n, g in grads.items() if min(as_matrix(g).shape) > 1}
        for way, names in ((self._fused, matrices), (self._in_place, grads.keys() - matrices)):
            if names:
                some = State(state.step, {kind: _of(names, ts) for kind, ts in kept.items()})
                found, after = way(_of(names, grads), _of(names, params), some)
                direction |= found
                for kind, tensors in after.items():
                    following[kind] |= tensors
        return {name: direction[name] for name in grads}, State(state.step + 1, following)

    def _in_place(
        self, grads: Tensors, params: Tensors, state: State
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """Direction and accumulators, of which those that were given are overwritten."""
        kept = state.accumulators
        gradients = [as_matrix(g) for g in grads.values()]
        first = {n: m[0].view_as(grads[n]) for n, m in kept["momenta"].items()}
        moments = adam_moments(grads, State(state.step, {"m": first, "v": kept["v"]}, donated=True))
        if moments.m[0] is not next(iter(first.values())):  # no fused kernel for these
            torch._foreach_copy_(list(first.values()), moments.m)
            kept = {**kept, "v": moments.state.accumulators["v"]}
        for i, decay in enumerate(_DECAYS[1:], start=1):
            momenta = [m[i] for m in kept["momenta"].values()]
            torch._foreach_lerp_(momenta, gradients, 1 - decay)
        adam = [as_matrix(d) for d in moments.direction]
        lengths = root_mean_square(adam) if self.normalised else []
        parts = (params.values(), kept["momenta"].values(), kept["v"].values(), adam)
        seen = [
            Seen(g, as_matrix(p).contiguous(), m, as_matrix(v), d)
            for g, p, m, v, d in zip(gradients, *parts, strict=True)
        ]
        overwrite_with_updates(
            self._network_at(moments.state.step),
            seen,
            list(kept["rows"].values()),
            list(kept["columns"].values()),
            weights=self._weights(gradients[0]),
            eps=_EPS,
        )
        if self.normalised:
            torch._foreach_mul_(adam, torch._foreach_div(lengths, root_mean_square(adam)))
        return self._shaped(adam, grads), kept

    def _fused(
        self, grads: Tensors, params: Tensors, state: State
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """The same as :meth:`_in_place` by compiled code."""
        step, kept, like = state.step + 1, state.accumulators, next(iter(grads.values()))
        network, weights = self._network_at(step), self._weights(like)
        corrections = like.new_tensor([1 - _DECAYS[0] ** step, 1 - _DECAYS[-1] ** step])
        direction = [
            compiled_step()(
                as_matrix(g),
                as_matrix(params[name]),
                kept["momenta"][name],
                as_matrix(kept["v"][name]),
                kept["rows"][name],
                kept["columns"][name],
                weights,
                corrections,
                network,
                normalised=self.normalised,
                eps=_EPS,
            )
            for name, g in grads.items()
        ]
        return self._shaped(direction, grads), kept

    def _weights(self, like: Tensor) -> Tensor:
        return 1 - like.new_tensor(_DECAYS)[:, None, None]

    def _shaped(self, direction: Sequence[Tensor], grads: Tensors) -> Tensors:
        return {n: d.view_as(g) for d, (n, g) in zip(direction, grads.items(), strict=True)}

    def _network_at(self, step: int) -> Network:
        """The network in a step counted from 1."""
        first, second, last = (m for m in self.network if isinstance(m, nn.Linear))
        inner, by_row, by_column, progress = torch.split(
            first.weight, [_PER_COORDINATE, _PER_LINE, _PER_LINE, len(_TIMES)], dim=1
        )
        times = first.bias.new_tensor([math.tanh((step - 1) / time - 1) for time in _TIMES])
        return Network(
            inner,
            by_row,
            by_column,
            torch.addmv(first.bias, progress, times),
            (second.weight, second.bias[:, None]),
            (last.weight * self.scale, last.bias[:, None] * self.scale),
        )


def _of(names: Collection[str], tensors: Tensors) -> Tensors:
    """Some tensors, in the order of all."""
    return {name: tensor for name, tensor in tensors.items() if name in names}


def _update(network: Network, seen: Seen, rows: Tensor, columns: Tensor) -> Tensor:
    """The update of one tensor, ``[R, C]``.

    The normalisers go into the weights, and what is constant along a row, along a column or
    everywhere goes into the bias: no feature is ever stored for that.
    """
    g, p, momenta = seen.gradient, seen.parameter, seen.momenta
    second, rows, columns = (
        seen.second / mean_of(seen.second),
        *(x / mean_of(x) for x in (rows, columns)),
    )
    inverse, inverse_rows, inverse_columns = _rsqrt(second), _rsqrt(rows), _rsqrt(columns)
    factors = inverse_rows * inverse_columns
    single = torch.stack([g, p, second, inverse])
    products = [single, momenta, momenta * inverse, g * factors, momenta * factors]
    features = torch.cat(products).flatten(1)
    by_row = linear_on_normalised(network.by_row, torch.cat([rows, inverse_rows]).flatten(1))
    by_column = linear_on_normalised(
        network.by_column, torch.cat([columns, inverse_columns]).flatten(1)
    )
    outer = by_row[:, :, None] + (by_column + network.bias[:, None])[:, None]
    hidden = (outer.flatten(1) + linear_on_normalised(network.inner, features)).relu()
    weight, bias = network.second
    hidden = torch.addmm(bias, weight, hidden).relu()
    weight, bias = network.last
    gain, extra = torch.addmm(bias, weight, hidden).view(2, *g.shape)
    return torch.addcmul(extra, gain.exp(), seen.adam)


def _rsqrt(relative_moment: Tensor) -> Tensor:
    return (relative_moment + _EPS).rsqrt()
