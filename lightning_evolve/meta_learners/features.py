"""Normalised features of a coordinate: what the learned rules see."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_evolve.meta_learners.moments import TINY


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
