"""Adam's direction as a pure, twice differentiable function: the base of most rules here."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_evolve.meta_learners.base import State, named
from lightning_evolve.tasks import Tensors

TINY = 1e-30
"""The smallest square whose root is taken: sqrt has no derivative at 0, and rows of an embedding
that a batch does not touch have a gradient of exactly 0. Far below any eps^2."""


class Moments(NamedTuple):
    """Adam's accumulators after a step, as lists in the order of the parameters.

    Args:
        m: first moments.
        v: second moments.
        direction: minus Adam's step, ``-m_hat / (sqrt(v_hat) + eps)``.
        state: the next state, holding ``m`` and ``v``.
    """

    m: list[Tensor]
    v: list[Tensor]
    direction: list[Tensor]
    state: State


def adam_moments(
    grads: Tensors, state: State, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> Moments:
    r"""One step of Adam's accumulators (Kingma and Ba 2015, algorithm 1).

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        d &= - \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Args:
        grads: gradients by name.
        state: a state with accumulators ``"m"`` and ``"v"``.
        betas: decays of the two moments.
        eps: added to the root.

    Returns:
        The accumulators, Adam's direction, and the next state.

    Example:
        >>> g = {"w": torch.tensor([0.5, -2.0])}
        >>> zeros = {"w": torch.zeros(2)}
        >>> adam_moments(g, State(0, {"m": zeros, "v": zeros})).direction
        [tensor([-1.0000,  1.0000])]
    """
    names, step = tuple(grads), state.step + 1
    g = list(grads.values())
    beta1, beta2 = betas
    m = torch._foreach_lerp(list(state.accumulators["m"].values()), g, 1 - beta1)
    v = torch._foreach_mul(list(state.accumulators["v"].values()), beta2)
    v = torch._foreach_addcmul(v, g, g, value=1 - beta2)
    root = torch._foreach_sqrt(torch._foreach_clamp_min(v, TINY))
    # The bias corrections are folded into two numbers: sqrt(v_hat) + eps, over -m_hat's factor.
    correction1, correction2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
    root = torch._foreach_add(
        torch._foreach_mul(root, -correction1 / correction2), -correction1 * eps
    )
    direction = torch._foreach_div(m, root)
    following = State(step, {**state.accumulators, "m": named(names, m), "v": named(names, v)})
    return Moments(list(m), list(v), list(direction), following)
