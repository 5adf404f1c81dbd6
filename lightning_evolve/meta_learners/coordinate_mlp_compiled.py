"""The step of CoordinateMLP as one function of a tensor, written for ``torch.compile`` to fuse.

The mathematics stands in ``coordinate_mlp.py``; a test holds both to the same naive one. The
network's few weights are numbers in an expression of each coordinate, so that the compiler makes
one loop over the coordinates of it and nothing in between is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from lightning_evolve.meta_learners.coordinate_mlp_in_place import Network
from lightning_evolve.meta_learners.features import linear_on_normalised, mean_of, safe_divisor
from lightning_evolve.meta_learners.moments import TINY


@cache
def compiled_step() -> Callable[..., Tensor]:
    """Returns :func:`step_of_tensor`, compiled when it is first called for tensors of any size."""
    compiled: Callable[..., Tensor] = torch.compile(step_of_tensor, dynamic=True)
    return compiled


def step_of_tensor(
    gradient: Tensor,
    parameter: Tensor,
    momenta: Tensor,
    second: Tensor,
    rows: Tensor,
    columns: Tensor,
    weights: Tensor,
    corrections: Tensor,
    network: Network,
    *,
    normalised: bool,
    eps: float,
) -> Tensor:
    """Moves the accumulators of one tensor on, in place, and returns its update.

    Args:
        gradient: ``[R, C]``.
        parameter: ``[R, C]``.
        momenta: one for each of the three decays, ``[3, R, C]``.
        second: the second moment of the longest decay, ``[R, C]``.
        rows: factored second moments, ``[3, R, 1]``.
        columns: the same by column, ``[3, 1, C]``.
        weights: one minus the decays, ``[3, 1, 1]``.
        corrections: Adam's, of its first and second moment, ``[2]``.
        network: its weights.
        normalised: whether the update has the length of Adam's.
        eps: added under the roots of relative moments.

    Returns:
        The update, ``[R, C]``.
    """
    squares = gradient * gradient
    momenta.lerp_(gradient, weights)
    second.lerp_(squares, weights[2])
    rows.lerp_(squares.mean(dim=1, keepdim=True), weights)
    columns.lerp_(squares.mean(dim=0, keepdim=True), weights)
    root = (second.clamp_min(TINY) / corrections[1]).sqrt() + 1e-8
    adam = -momenta[0] / corrections[0] / root

    relative = second / mean_of(second)
    by_rows, by_columns = rows / mean_of(rows), columns / mean_of(columns)
    inverse, over_rows, over_columns = ((x + eps).rsqrt() for x in (relative, by_rows, by_columns))
    factors = [over_rows[k] * over_columns[k] for k in range(3)]
    features = [gradient, parameter, relative, inverse]
    features += [momenta[k] for k in range(3)]
    features += [momenta[k] * inverse for k in range(3)]
    features += [gradient * factor for factor in factors]
    features += [momenta[k] * factors[k] for k in range(3)]
    of_rows = linear_on_normalised(network.by_row, torch.cat([by_rows, over_rows]).flatten(1))
    of_columns = linear_on_normalised(
        network.by_column, torch.cat([by_columns, over_columns]).flatten(1)
    )
    of_columns = of_columns + network.bias[:, None]
    lengths = torch.stack([safe_divisor((f * f).mean()) for f in features]).sqrt()
    inner = network.inner / lengths
    hidden = [
        _sum(of_rows[j][:, None] + of_columns[j][None], inner[j], features).relu()
        for j in range(inner.shape[0])
    ]
    weight, bias = network.second
    hidden = [_sum(bias[j], weight[j], hidden).relu() for j in range(weight.shape[0])]
    weight, bias = network.last
    gain, extra = (_sum(bias[j], weight[j], hidden) for j in range(2))
    update = extra + gain.exp() * adam
    if normalised:
        ratio = (adam.square().mean() + TINY) / (update.square().mean() + TINY)
        update = update * ratio.sqrt()
    return update


def _sum(bias: Tensor, weights: Tensor, features: Sequence[Tensor]) -> Tensor:
    """A unit before its activation."""
    total = bias
    for i, feature in enumerate(features):
        total = total + weights[i] * feature
    return total
