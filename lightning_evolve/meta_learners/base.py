"""The contract of a meta-learner: gradients in, an update direction out."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_evolve.errors import UsageError
from lightning_evolve.tasks import Tensors


class State(NamedTuple):
    """What a meta-learner remembers from one inner step to the next.

    Args:
        step: inner steps taken since ``init``; a Python number, so that reading it never
            waits for a device.
        accumulators: by name (``"m"``, ``"v"``), tensors by the name of their parameter.
        donated: whether nobody else will read the accumulators, so that a rule may overwrite them
            where no graph is kept.
    """

    step: int
    accumulators: dict[str, Tensors]
    donated: bool = False


def check_scale(scale: float) -> None:
    """Refuses a factor of a network's output that is not positive.

    Args:
        scale: it.

    Raises:
        UsageError: if it is not.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(f"scale is {scale}; give a positive number such as 0.1")


class MetaLearner(nn.Module):
    """An update rule g_phi: ``forward(grads, params, state) -> (direction, state)``.

    The inner step is ``theta <- theta + alpha * direction``: a rule that descends returns minus
    the gradient. ``forward`` is a pure function of its arguments and phi, but for a state that was
    donated to it, and is differentiable by both. phi are the module's parameters; hand-designed
    rules have none and stand in the same slot. Weights of phi belong to a tensor, a row or a
    coordinate, never to a pair of parameters: a dense map would need P^2 of them.

    Args:
        params: the parameters that will adapt, by name; only names, shapes and dtypes matter.

    Attributes:
        version: goes up when the same numbers in phi come to mean something else, so that saved
            ones are refused.
        options: the keyword arguments that the rule was built with.
        elementwise: whether a coordinate's direction depends on nothing but its own gradients, so
            that tensors may have a task dimension in front.
        shapes: shape of each tensor that it was built for, by name.
        compiled: whether steps that keep no graph run compiled code; None if there is none.
    """

    version: ClassVar[int] = 1
    elementwise: ClassVar[bool] = False
    accumulators: tuple[str, ...] = ()
    compiled: bool | None = None
    options: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Keeps the options of every rule, so that it can be saved and built again."""
        rule = super().__new__(cls)
        object.__setattr__(rule, "options", options)
        return rule

    def __init__(self, params: Tensors) -> None:
        super().__init__()
        self.names = tuple(params)
        self.shapes = {name: tuple(p.shape) for name, p in params.items()}

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

    def over(self, params: Tensors) -> Self:
        """Returns this rule, with the very same phi, for some of its tensors or another model's.

        Rules with something that belongs to tensors override it.

        Args:
            params: the parameters, by name.

        Raises:
            UsageError: if phi belongs to tensors, and these are others.
        """
        other = copy(self)
        # A shallow copy shares the dictionaries of parameters, modules and buffers.
        for kind in ("_parameters", "_modules", "_buffers"):
            object.__setattr__(other, kind, dict(getattr(self, kind)))
        other.names = tuple(params)
        other.shapes = {name: tuple(p.shape) for name, p in params.items()}
        return other

    def within(self, params: Tensors) -> Self:
        """Returns this rule for some of the tensors of the model that it is for.

        Args:
            params: some of the parameters, by name.
        """
        return self.over(params)

    def places(self, params: Tensors) -> list[int]:
        """Returns where tensors stand among those of this rule, which phi belongs to.

        Args:
            params: parameters by name; a name that is a number is a position.

        Raises:
            UsageError: if one of them is none of this rule's.
        """
        place = {name: index for index, name in enumerate(self.names)}
        places = []
        for name, p in params.items():
            index = place.get(name, int(name) if name.isdecimal() else -1)
            if not 0 <= index < len(place) or self.shapes[self.names[index]] != tuple(p.shape):
                raise UsageError(
                    f"{type(self).__name__} has learned something for each of {len(place)} "
                    f"tensors, and {name} of shape {tuple(p.shape)} is none of them; for another "
                    "model use a rule whose phi is shared, such as Gains with per: role"
                )
            places.append(index)
        return places

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
