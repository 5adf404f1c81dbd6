"""The contract of a meta-learner: gradients in, an update direction out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_evolve.tasks import Tensors


class State(NamedTuple):
    """What a meta-learner remembers from one inner step to the next.

    Args:
        step: inner steps taken since ``init``; a Python number, so that reading it never
            waits for a device.
        accumulators: by name (``"m"``, ``"v"``), tensors by the name of their parameter.
    """

    step: int
    accumulators: dict[str, Tensors]


class MetaLearner(nn.Module):
    """An update rule g_phi: ``forward(grads, params, state) -> (direction, state)``.

    The inner step is ``theta <- theta + alpha * direction``: a rule that descends returns minus
    the gradient. ``forward`` is a pure function of its arguments and phi and is differentiable
    by both. phi are the module's parameters; hand-designed rules have none and stand in the
    same slot. Weights of phi belong to a tensor, a row or a coordinate, never to a pair of
    parameters: a dense map would need P^2 of them.

    Args:
        params: the parameters that will adapt, by name; only names, shapes and dtypes matter.
    """

    accumulators: tuple[str, ...] = ()

    def __init__(self, params: Tensors) -> None:
        super().__init__()
        self.names = tuple(params)

    def init(self, params: Tensors) -> State:
        """Returns the state before the first inner step: all accumulators zero."""
        zeros = {
            kind: {name: torch.zeros_like(value) for name, value in params.items()}
            for kind in self.accumulators
        }
        return State(0, zeros)

    def phi(self) -> Tensors:
        """Returns phi: the trainable parameters by name, none for a hand-designed rule."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """Turns the support gradient into a direction.

        Args:
            grads: gradient of the support loss by each adapting parameter.
            params: the parameters themselves, under the same names in the same order.
            state: what ``init`` or the step before returned.

        Returns:
            The direction by name, and the next state.
        """
        raise NotImplementedError


MetaLearnerFactory = Callable[[Tensors], MetaLearner]
"""Builds a rule once theta is known: a rule's class, or a ``functools.partial`` of it."""


def named(names: tuple[str, ...], values: list[Tensor] | tuple[Tensor, ...]) -> Tensors:
    """Puts names back on a list of tensors that a ``torch._foreach`` operation returned."""
    return dict(zip(names, values, strict=True))
