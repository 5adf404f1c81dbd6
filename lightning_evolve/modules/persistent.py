"""Theta and a rule's state as they carry on along a stream, over tasks and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_evolve.inner_loop import Adapted, tensors_of, with_tensors
from lightning_evolve.meta_learners import State
from lightning_evolve.tasks import Tensors


def averaged(
    adapted: Sequence[Adapted], reduce: Callable[[Tensor], Tensor] | None = None
) -> Adapted:
    """Averages where the tasks of an outer step have taken theta and the rule's state.

    Args:
        adapted: one for each task of this process, from the same start and as many steps on.
        reduce: the mean of a vector over processes, where there are several.

    Example:
        >>> ends = [Adapted({"w": torch.tensor([x])}, State(1, {})) for x in (1.0, 3.0)]
        >>> averaged(ends).theta
        {'w': tensor([2.])}
    """
    first = adapted[0]
    means = tensors_of(first)
    for other in adapted[1:]:
        means = list(torch._foreach_add(means, tensors_of(other)))
    if len(adapted) > 1:
        means = list(torch._foreach_div(means, len(adapted)))
    if reduce:
        # One vector, one all-reduce, however many tensors there are.
        flat = reduce(torch.cat([t.reshape(-1) for t in means]))
        split = torch.split(flat, [t.numel() for t in means])
        means = [part.view_as(t) for part, t in zip(split, means, strict=True)]
    return with_tensors(first, means)


def matched(state: State, theta: Tensors) -> State:
    """Follows theta to its device and precision; Lightning moves and converts parameters only.

    Args:
        state: the rule's state.
        theta: the adapting parameters.
    """
    return State(
        state.step,
        {
            kind: {name: t.to(theta[name]) for name, t in tensors.items()}
            for kind, tensors in state.accumulators.items()
        },
    )
