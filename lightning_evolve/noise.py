"""Randomness that is a function of numbers, such as a seed, a task's index and a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import nn


def generator(*numbers: int) -> torch.Generator:
    """Returns a source of noise that is a function of some numbers, such as a seed and an index.

    It draws on the CPU, so that the same numbers come out on every device.

    Args:
        *numbers: at least two; neighbours have nothing in common (SplitMix64).

    Example:
        >>> a, b = (torch.randn(3, generator=generator(0, 5)) for _ in range(2))
        >>> torch.equal(a, b)
        True
    """
    return torch.Generator().manual_seed(reduce(_mix, numbers))


@contextmanager
def dropping(module: nn.Module, *numbers: int) -> Iterator[None]:
    """Has what a module drops at random be a function of some numbers, and of nothing else.

    So a step that is taken again drops the same, as do both sides of an antithetic pair, every
    process that plays a task, and a run that goes on after it was killed.

    Args:
        module: whose dropout is meant; without any, nothing is done.
        *numbers: at least two, such as a seed, a task's index and an inner step.

    Example:
        >>> drop, x = nn.Dropout(0.5), torch.ones(8)
        >>> with dropping(drop, 0, 1):
        ...     a = drop(x)
        >>> with dropping(drop, 0, 1):
        ...     torch.equal(a, drop(x))
        True
    """
    if not drops(module):
        yield
        return
    devices = {p.device for p in module.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=sorted(d.index for d in devices)):
        torch.manual_seed(reduce(_mix, numbers))
        yield


def drops(module: nn.Module) -> bool:
    """Returns whether something in a module drops activations at random, by the names of classes.

    Args:
        module: such as a learner.

    >>> drops(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))), drops(nn.Dropout(0.1))
    (False, True)
    """
    return any(
        part.training
        and (
            ("drop" in type(part).__name__.lower() and bool(getattr(part, "p", True)))
            or (isinstance(part, nn.RNNBase) and part.dropout > 0)
        )
        for part in module.modules()
    )


def _mix(seed: int, index: int) -> int:
    """A 63-bit seed from two numbers, so that neighbouring tasks share no noise (SplitMix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) >> 1
