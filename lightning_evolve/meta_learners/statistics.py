"""Training statistics of a tensor, or a group of tensors: what a controller sees of the training.

All are free of units and of the order of 1, so that one small network reads every tensor of every
learner.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_evolve.meta_learners.moments import TINY

STATISTICS = (
    "gradient: log of its root mean square, over 10",
    "parameters: log of their root mean square, over 10",
    "signal: root mean square of Adam's momentum over that of all gradients so far",
    "agreement: tanh of the product of gradient and momentum over the mean squared gradient",
    "size: log of the number of parameters, over 10",
)
"""What each column is."""


def training_statistics(
    grads: list[Tensor],
    params: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Tensor:
    """Returns the statistics of each tensor, of shape ``[tensors, len(STATISTICS)]``.

    Args:
        grads: gradients.
        params: parameters, of the same shapes.
        m: Adam's first moments, these gradients among them.
        v: Adam's second moments, these gradients among them.
        step: gradients that are in the moments, at least 1.
        betas: decays of the moments.

    Example:
        >>> g = [torch.tensor([1.0, -1.0])]
        >>> training_statistics(g, g, [0.1 * g[0]], [0.001 * g[0] ** 2], step=1)
        tensor([[0.0000, 0.0000, 1.0000, 0.7616, 0.0693]])
    """
    correction1, correction2 = 1 - betas[0] ** step, 1 - betas[1] ** step
    # One list of all pairs: a small learner's step is as long as its number of operations.
    products = mean_products([*grads, *params, *m, *grads], [*grads, *params, *m, *m])
    *squares, agreement = products.view(4, len(grads))
    gradient, parameter, momentum = (torch.stack(squares) + TINY).sqrt()
    second = torch.stack([t.mean() for t in v]).clamp_min(TINY) / correction2
    sizes = second.new_tensor([math.log(g.numel()) for g in grads])
    return torch.stack(
        [
            gradient.log() / 10,
            parameter.log() / 10,
            momentum / correction1 / second.sqrt(),
            (agreement / correction1 / second).tanh(),
            sizes / 10,
        ],
        dim=-1,
    )


def mean_products(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Returns the mean product of two lists of tensors, one number a pair, with no temporaries.

    Args:
        one: tensors of any shapes.
        other: tensors of the same shapes.

    Example:
        >>> mean_products([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])])
        tensor([5.5000])
    """
    pairs = zip(one, other, strict=True)
    products = torch.stack([torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in pairs])
    return products / products.new_tensor([t.numel() for t in one])


def progress(step: int, horizon: int) -> float:
    """Returns how far along the inner loop is, from 0 to 1 in the logarithm of steps.

    Args:
        step: inner steps already taken.
        horizon: where 1 is reached; beyond it the last value stays.

    Example:
        >>> progress(0, 100), progress(100, 100), progress(500, 100)
        (0.0, 1.0, 1.0)
    """
    return min(1.0, math.log1p(step) / math.log1p(horizon))
