"""The contract of a learner: encoded inputs to logits, and nothing of tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import nn
from typing_extensions import Self

from lightning_evolve.tasks import DataSpec


class Learner(nn.Module):
    """A base classifier theta: ``forward(**inputs) -> logits`` of shape ``[rows, num_classes]``.

    The output layer is named ``head`` and the first layer as ``first_layer`` says, so that what
    adapts and what gets a learning rate of its own can be told by name in every architecture.
    A learner is a deterministic function of its parameters and inputs, so that an inner loop is
    one too. Modules called dropout are the exception: what they drop is a function of the seed, the
    task and the step.

    Args:
        spec: what the data looks like.

    Attributes:
        first_layer: prefix of the names of the embedding's or first layer's parameters.
        second_order: set by the engine while it differentiates through gradients; a learner
            with an implementation that is fast but differentiable only once takes the other one.
        options: the keyword arguments that the learner was built with, beside the ``spec``.
        frozen: names of the parameters that the learner itself asks no gradient for; they adapt
            only where they are named.
    """

    first_layer: str = ""
    frozen: frozenset[str] = frozenset()
    second_order: bool = False
    options: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Keeps the options of every learner, so that it can be saved and built again."""
        learner = super().__new__(cls)
        object.__setattr__(learner, "options", options)
        return learner

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec

    @cached_property
    def tied(self) -> bool:
        """Whether a parameter has two names; found out once, for it takes as long as a small layer.

        To be asked of a learner that is whole.
        """
        names = self.named_parameters(remove_duplicate=False)
        return len([*names]) > len([*self.parameters()])


LearnerFactory = Callable[[DataSpec], Learner]
"""Builds a learner once the data is known: a learner's class, or a ``functools.partial`` of it."""


def zero(head: nn.Linear) -> None:
    """Sets a linear layer to zero.

    Args:
        head: the layer.
    """
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
