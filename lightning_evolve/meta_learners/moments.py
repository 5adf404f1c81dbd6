"""Adam's direction as a pure, twice differentiable function: the base of most rules here."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import State, named
from lightning_evolve.meta_learners.foreach import on_temporaries
from lightning_evolve.tasks import Tensors

TINY = 1e-30
"""The smallest square whose root is taken: sqrt has no derivative at 0, and rows of an embedding
that a batch does not touch have a gradient of exactly 0. Far below any eps^2."""


def check_adam(betas: tuple[float, float], eps: float, weight_decay: float = 0.0) -> None:
    """Refuses numbers of Adam that are out of range.

    Args:
        betas: decays of the two moments.
        eps: added to the root.
        weight_decay: decoupled decay.

    Raises:
        UsageError: naming the first of them.
    """
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UsageError(f"betas is {betas}; give two numbers from 0 to below 1")
    for name, value in (("eps", eps), ("weight_decay", weight_decay)):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} is {value}; give 0 or a positive number")


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
    if not torch.is_grad_enabled() and _fusable(g, state):
        return _fused(names, g, state, betas, eps)
    m = torch._foreach_lerp(list(state.accumulators["m"].values()), g, 1 - beta1)
    decayed = torch._foreach_mul(list(state.accumulators["v"].values()), beta2)
    v = on_temporaries("addcmul", decayed, g, g, 1 - beta2)
    direction = adam_direction(m, v, step, betas, eps)
    following = State(step, {**state.accumulators, "m": named(names, m), "v": named(names, v)})
    return Moments(list(m), list(v), direction, following)


def adam_direction(
    m: list[Tensor] | tuple[Tensor, ...],
    v: list[Tensor] | tuple[Tensor, ...],
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> list[Tensor]:
    """Returns minus Adam's step.

    Args:
        m: first moments after this step.
        v: second moments after this step.
        step: number of this step, from 1 on.
        betas: decays of the two moments.
        eps: added to the root.
    """
    root = on_temporaries("sqrt", torch._foreach_clamp_min(v, TINY))
    # The bias corrections are folded into two numbers: sqrt(v_hat) + eps, over -m_hat's factor.
    correction1, correction2 = 1 - betas[0] ** step, math.sqrt(1 - betas[1] ** step)
    root = on_temporaries("mul", root, -correction1 / correction2)
    root = on_temporaries("add", root, -correction1 * eps)
    return on_temporaries("mul", on_temporaries("reciprocal", root), m)


def _fusable(gradients: list[Tensor], state: State) -> bool:
    """Whether torch's fused kernel takes these tensors: one device, one of its usual dtypes.

    It goes through their memory whatever their strides, so the moments have to be contiguous.
    """
    kinds = {(g.device.type, g.dtype) for g in gradients}
    moments = (t for kind in ("m", "v") for t in state.accumulators[kind].values())
    return len(kinds) == 1 and kinds <= _FUSED and all(t.is_contiguous() for t in moments)


_FUSED = {(d, t) for d in ("cpu", "cuda") for t in (torch.float32, torch.float64)}


def _fused(
    names: tuple[str, ...], g: list[Tensor], state: State, betas: tuple[float, float], eps: float
) -> Moments:
    """The same where no graph is kept: torch's fused Adam, from zero parameters at the rate 1.

    One pass over memory in place of eight. It agrees with the other way to rounding.
    """
    step, g = state.step + 1, [t.contiguous() for t in g]
    m, v = (
        [t if state.donated else t.clone() for t in state.accumulators[kind].values()]
        for kind in ("m", "v")
    )
    direction = [torch.zeros_like(t) for t in g]
    count = torch.full((), float(step), device=g[0].device)
    torch._fused_adam_(
        direction,
        g,
        m,
        v,
        [],
        [count] * len(g),
        lr=1.0,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
    following = State(step, {**state.accumulators, "m": named(names, m), "v": named(names, v)})
    return Moments(m, v, direction, following)
