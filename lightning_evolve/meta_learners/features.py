"""Normalised features of a coordinate: what the learned rules see."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_evolve.meta_learners.moments import TINY

_LEAST = 1e-18


def root_mean_square(tensors: list[Tensor]) -> list[Tensor]:
    """Returns the root mean square of each tensor, a scalar each, never below 1e-15.

    Args:
        tensors: tensors of any shapes.

    Example:
        >>> root_mean_square([torch.tensor([3.0, -3.0]), torch.zeros(2)])
        [tensor(3.), tensor(1.0000e-15)]
    """
    return [(t.square().mean() + TINY).sqrt() for t in tensors]


def normalise(tensors: list[Tensor]) -> list[Tensor]:
    """Returns each tensor divided by its root mean square, so that no scale is left.

    Args:
        tensors: tensors of any shapes.
    """
    return list(torch._foreach_div(tensors, root_mean_square(tensors)))


def safe_divisor(squares: Tensor) -> Tensor:
    """Returns squares to divide by, with 1 in place of those below 1e-18.

    Where everything is 0, such as in a part of the learner that the loss does not reach, the
    quotient is 0 and so are its first and second derivatives; 32 bits hold 1e-18 squared.

    Args:
        squares: any shape.

    Example:
        >>> safe_divisor(torch.tensor([4.0, 0.0]))
        tensor([4., 1.])
    """
    return torch.where(squares > _LEAST, squares, torch.ones_like(squares))


def mean_of(moment: Tensor) -> Tensor:
    """Returns the mean of a second moment, shape ``[..., 1, 1]``, to divide it by.

    Args:
        moment: squares, shape ``[..., rows, columns]``.
    """
    return safe_divisor(moment.mean(dim=(-2, -1), keepdim=True))


def linear_on_normalised(weight: Tensor, features: Tensor) -> Tensor:
    """A linear layer on features over their root mean square.

    Args:
        weight: ``[out, features]``.
        features: ``[features, places]``.

    Example:
        >>> linear_on_normalised(torch.ones(1, 1), torch.tensor([[3.0, -3.0]]))
        tensor([[ 1., -1.]])
    """
    return (weight / safe_divisor(features.square().mean(dim=1)).sqrt()) @ features
