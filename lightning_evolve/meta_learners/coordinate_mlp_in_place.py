"""The step of CoordinateMLP where no graph is kept: few passes over memory, most of them in cache.

The mathematics stands in ``coordinate_mlp.py``; a test holds both to the same naive one. Tensors
are taken apart into blocks of rows that fit a cache, and what is computed of a block is written
into the same room again: fresh memory would cost more than the arithmetic. Tensors of one shape
share what is computed of a tensor as a whole, which for a transformer's many small ones would take
longer than their coordinates do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_evolve.meta_learners.features import mean_of, safe_divisor

# Coordinates of a block, in which they are squared and in which they go through the network: larger
# ones take fewer calls, and smaller ones stay in a nearer cache.
_SQUARED, _BLOCK = 1 << 16, 1 << 14
_BLOCK_OF_A_GPU = 1 << 20


class Network(NamedTuple):
    """The network's weights, with all that is the same for every coordinate in its biases.

    Args:
        inner: weights of the features that each coordinate has of its own, ``[hidden, 16]``.
        by_row: weights of those of a row, ``[hidden, 6]``.
        by_column: weights of those of a column, ``[hidden, 6]``.
        bias: of the first layer, progress included, ``[hidden]``.
        second: weight and bias of the second layer, the latter ``[hidden, 1]``.
        last: weight and bias of the last layer, times the rule's constant, the latter ``[2, 1]``.
    """

    inner: Tensor
    by_row: Tensor
    by_column: Tensor
    bias: Tensor
    second: tuple[Tensor, Tensor]
    last: tuple[Tensor, Tensor]


class Seen(NamedTuple):
    """One tensor and its accumulators after this step, as matrices of R rows and C columns.

    Args:
        gradient: ``[R, C]``.
        parameter: ``[R, C]``.
        momenta: one for each of the three decays, ``[3, R, C]``.
        second: the second moment, ``[R, C]``.
        adam: Adam's direction, ``[R, C]``; it is overwritten by the update.
    """

    gradient: Tensor
    parameter: Tensor
    momenta: Tensor
    second: Tensor
    adam: Tensor


class _RoomForSquares:
    """Memory to square a block of n rows and C columns in, by what stands in it."""

    def __init__(self, like: Tensor) -> None:
        block, new = like.shape, like.new_empty
        self.second, self.inverse = new(block), new(block)
        self.vectors = self.second.view(-1), self.inverse.view(-1)
        # Squares of the momenta, and ones, which sum what the squares are multiplied with.
        squares = like.new_ones(4, *block)
        self.squares, self.momenta = squares.flatten(1), squares[1:]
        self.flat_momenta, self.ones = self.squares[1:], like.new_ones(len(like))
        self.gradient = new(block)
        self.across = self.gradient.T


class _RoomForFeatures:
    """Memory to run the network on a block of n rows and C columns in."""

    def __init__(self, like: Tensor, hidden: int) -> None:
        block, new = like.shape, like.new_empty
        features = new(16, *block)
        self.features = features.flatten(1)
        self.own, self.second, self.inverse = features[:2], features[2], features[3]
        self.momenta, self.by_second = features[4:7], features[7:10]
        self.factored_gradient, self.factored_momenta = features[10:13], features[13:16]
        self.factors = new(3, *block)
        self.hidden = new(hidden, *block)
        self.flat_hidden, self.flat_second = self.hidden.flatten(1), new(hidden, like.numel())
        self.out = new(2, like.numel())
        self.gain, self.extra = self.out.view(2, *block).unbind()


def overwrite_with_updates(
    network: Network,
    tensors: Sequence[Seen],
    rows: Sequence[Tensor],
    columns: Sequence[Tensor],
    *,
    weights: Tensor,
    eps: float,
) -> None:
    """Moves the factored second moments on, and turns Adam's directions into the rule's.

    Args:
        network: its weights.
        tensors: what it sees of each tensor, contiguous; their ``adam`` is overwritten.
        rows: factored second moments, ``[3, R, 1]`` each, which are overwritten.
        columns: the same by column, ``[3, 1, C]`` each.
        weights: one minus the decays of the factored moments, ``[3, 1, 1]``.
        eps: added under the roots.
    """
    alike: defaultdict[torch.Size, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        alike[tensor.gradient.shape].append(index)
    for places in alike.values():
        group = _Alike([tensors[i] for i in places], eps)
        of_rows, of_columns = group.mean_squares()
        by_row = torch.stack([rows[i] for i in places]).lerp_(of_rows, weights)
        by_column = torch.stack([columns[i] for i in places]).lerp_(of_columns, weights)
        torch._foreach_copy_([rows[i] for i in places], list(by_row.unbind()))
        torch._foreach_copy_([columns[i] for i in places], list(by_column.unbind()))
        group.update(network, by_row, by_column, of_rows.mean(dim=(1, 2)))


class _Alike:
    """B tensors of one shape: R rows and C columns each."""

    def __init__(self, tensors: Sequence[Seen], eps: float) -> None:
        self.tensors, self.eps, self.new = tensors, eps, tensors[0].gradient
        self.count, self.width = self.new.shape
        self.squared = self._blocks(_SQUARED)
        ends = (self.squared[0].gradient, self.squared[-1].gradient)
        self.rooms = {len(gradient): _RoomForSquares(gradient) for gradient in ends}

    def _rows_of(self, block: int) -> int:
        """How many rows a block has, but for the last one of a tensor."""
        return max(1, (block if self.new.device.type == "cpu" else _BLOCK_OF_A_GPU) // self.width)

    def _blocks(self, block: int) -> list[Seen]:
        """Takes the tensors apart, one after the other, into blocks of rows."""
        size = self._rows_of(block)
        return [
            Seen(*parts)
            for seen in self.tensors
            for parts in zip(
                torch.split(seen.gradient, size),
                torch.split(seen.parameter, size),
                torch.split(seen.momenta, size, dim=1),
                torch.split(seen.second, size),
                torch.split(seen.adam, size),
                strict=True,
            )
        ]

    def _parts(self, tensors: Tensor, block: int, dim: int = 0) -> list[Tensor]:
        """Takes ``[B, ...]`` apart in the same way, along a dimension of what follows B."""
        size = self._rows_of(block)
        return [part for t in tensors.unbind() for part in torch.split(t, size, dim)]

    def mean_squares(self) -> tuple[Tensor, Tensor]:
        """The mean squared gradient of each row, ``[B, 1, R, 1]``, and column, ``[B, 1, 1, C]``."""
        by_row = self.new.new_empty(len(self.tensors), self.count)
        by_column = self.new.new_zeros(len(self.tensors), self.width)
        ones, each = self.new.new_ones(self.width), len(self.squared) // len(self.tensors)
        columns = by_column.unbind()
        parts = zip(self.squared, self._parts(by_row, _SQUARED), strict=True)
        for i, (block, row) in enumerate(parts):
            room = self.rooms[len(block.gradient)]
            torch.mul(block.gradient, block.gradient, out=room.gradient)
            torch.mv(room.gradient, ones, out=row)
            columns[i // each].addmv_(room.across, room.ones)
        return by_row[:, None, :, None] / self.width, by_column[:, None, None] / self.count

    def _sums_of_squares(self, over: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Those of each feature but the gradient, ``[B, 15]``, with none of them in full.

        The sum over rows and columns of x^2 / (r c) is a product of three matrices.

        Args:
            over: one over the mean of the second moment, ``[B, 1, 1]``.
            rows: one over the relative moments of the rows, ``[B, 3, R, 1]``.
            columns: the same of the columns, ``[B, 3, 1, C]``.
        """
        of_gradient = self.new.new_empty(len(self.tensors), self.count, 3)
        of_momenta = self.new.new_empty(len(self.tensors), 3, self.count, 1)
        by_column = [(c.flatten(1).T, c.mT) for c in columns.unbind()]
        flat = [seen.parameter.reshape(-1) for seen in self.tensors]
        of_parameters = torch.stack([torch.dot(p, p) for p in flat])
        overs, seconds, found = over.unbind(), [], []
        each = len(self.squared) // len(self.tensors)
        outs = (self._parts(of_gradient, _SQUARED), self._parts(of_momenta, _SQUARED, dim=1))
        for i, (block, *out) in enumerate(zip(self.squared, *outs, strict=True)):
            room, (for_gradient, for_momenta) = (
                self.rooms[len(block.gradient)],
                by_column[i // each],
            )
            second, inverse = room.vectors
            torch.mul(block.second, overs[i // each], out=room.second)
            torch.add(room.second, self.eps, out=room.inverse).reciprocal_()
            torch.mul(block.gradient, block.gradient, out=room.gradient)
            torch.mul(block.momenta, block.momenta, out=room.momenta)
            torch.mm(room.gradient, for_gradient, out=out[0])
            torch.bmm(room.momenta, for_momenta, out=out[1])
            seconds.append(torch.dot(second, second))
            found += [torch.mv(room.squares, inverse), room.flat_momenta.sum(dim=1)]
        of_second = torch.stack(seconds).view(-1, each).sum(dim=1)
        sums = torch.cat(found).view(len(self.tensors), each, -1).sum(dim=1)
        of_inverse, of_products, of_momentum = torch.split(sums, [1, 3, 3], dim=1)
        factored_gradient = (of_gradient * rows.squeeze(-1).mT).sum(dim=1)
        factored_momenta = (of_momenta * rows).sum(dim=(2, 3))
        single = torch.stack([of_parameters, of_second], dim=1)
        products = [of_momentum, of_products, factored_gradient, factored_momenta]
        return torch.cat([single, of_inverse, *products], dim=1)

    def update(self, network: Network, rows: Tensor, columns: Tensor, squares: Tensor) -> None:
        """Runs the network on the features of each coordinate, and writes the updates.

        Args:
            network: its weights.
            rows: factored second moments, ``[B, 3, R, 1]``.
            columns: the same by column, ``[B, 3, 1, C]``.
            squares: the mean squared gradient of each tensor, ``[B, 1]``.
        """
        # The mean of the second moment itself: that of its decay over the rows.
        over = mean_of(rows[:, -1]).reciprocal()
        rows, columns = rows / mean_of(rows), columns / mean_of(columns)
        over_rows, over_columns = (
            (rows + self.eps).reciprocal_(),
            (columns + self.eps).reciprocal_(),
        )
        sums = self._sums_of_squares(over, over_rows, over_columns)
        squares = torch.cat([squares, sums / (self.count * self.width)], dim=1)
        over_rows.sqrt_(), over_columns.sqrt_()
        by_row = _of_lines(network.by_row, rows, over_rows)
        by_column = _of_lines(network.by_column, columns, over_columns) + network.bias[:, None]
        inner = (network.inner / safe_divisor(squares).sqrt()[:, None]).unbind()
        (second, second_bias), (last, last_bias) = network.second, network.last
        blocks = self._blocks(_BLOCK)
        each, ends = len(blocks) // len(inner), (blocks[0].gradient, blocks[-1].gradient)
        rooms = {len(gradient): _RoomForFeatures(gradient, len(second)) for gradient in ends}
        of_tensor = list(zip(inner, over, over_columns, by_column[:, :, None], strict=True))
        of_block = (self._parts(t, _BLOCK, dim=1) for t in (over_rows, by_row[..., None]))
        for i, (seen, over_row, row) in enumerate(zip(blocks, *of_block, strict=True)):
            room = rooms[len(seen.gradient)]
            weight, over_mean, over_column, column = of_tensor[i // each]
            torch.stack([seen.gradient, seen.parameter], out=room.own)
            torch.mul(seen.second, over_mean, out=room.second)
            torch.add(room.second, self.eps, out=room.inverse).rsqrt_()
            room.momenta.copy_(seen.momenta)
            torch.mul(seen.momenta, room.inverse, out=room.by_second)
            torch.mul(over_row, over_column, out=room.factors)
            torch.mul(seen.gradient, room.factors, out=room.factored_gradient)
            torch.mul(seen.momenta, room.factors, out=room.factored_momenta)
            torch.add(row, column, out=room.hidden)
            room.flat_hidden.addmm_(weight, room.features).relu_()
            torch.addmm(second_bias, second, room.flat_hidden, out=room.flat_second).relu_()
            torch.addmm(last_bias, last, room.flat_second, out=room.out)
            torch.addcmul(room.extra, room.gain.exp_(), seen.adam, out=seen.adam)


def _of_lines(weight: Tensor, relative: Tensor, over_root: Tensor) -> Tensor:
    """What rows or columns add to the first layer, ``[B, hidden, R]`` or ``[B, hidden, C]``."""
    features = torch.cat([relative, over_root], dim=1).flatten(2)
    return torch.bmm(weight / safe_divisor(features.square().mean(dim=2)).sqrt()[:, None], features)
