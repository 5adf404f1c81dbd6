"""All coordinates as one vector, which a network takes in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Puts tensors one after the other into one vector.

    Args:
        tensors: tensors of any shapes.

    Example:
        >>> flatten([torch.ones(2, 1), torch.zeros(())])
        tensor([1., 1., 0.])
    """
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Takes a vector apart again.

    Args:
        vector: shape ``[coordinates]``.
        like: tensors of the shapes to return, which have as many coordinates together.
    """
    split = torch.split(vector, [t.numel() for t in like])
    return [part.view_as(t) for part, t in zip(split, like, strict=True)]


def chunks(length: int, size: int) -> Iterator[slice]:
    """Yields the parts of a vector that a network takes at once.

    Small ones stay in the cache of a CPU. Where a graph is kept there is one part only: what the
    network computes in between is kept too, and cutting it would only cost time.

    Args:
        length: coordinates of the vector.
        size: of a part.

    Example:
        >>> with torch.no_grad():
        ...     list(chunks(5, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    if torch.is_grad_enabled():
        size = max(length, 1)
    for first in range(0, max(length, 1), size):
        yield slice(first, min(first + size, length))


def as_matrix(tensor: Tensor) -> Tensor:
    """Views a tensor as a matrix: a vector has one column, further dimensions are columns.

    Args:
        tensor: any shape.

    Example:
        >>> [tuple(as_matrix(torch.zeros(shape)).shape) for shape in ((), (4,), (4, 3, 2))]
        [(1, 1), (4, 1), (4, 6)]
    """
    return tensor.reshape(tensor.shape[0], -1) if tensor.dim() > 1 else tensor.reshape(-1, 1)
