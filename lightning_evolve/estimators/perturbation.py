"""Gaussian perturbations of phi, and the runs that are played under them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor

from lightning_evolve.estimators.base import Episode
from lightning_evolve.inner_loop import Adapted, logits
from lightning_evolve.tasks import Tensors


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


def gaussian(phi: Tensors, source: torch.Generator) -> Tensors:
    """Draws a perturbation of phi with a standard deviation of 1.

    Args:
        phi: tensors by name.
        source: of the noise; tensors of any precision get the same numbers.
    """
    return {
        n: torch.randn(p.shape, generator=source, dtype=torch.float64).to(p) for n, p in phi.items()
    }


@contextmanager
def perturbed(phi: Tensors, epsilon: Tensors, scale: float) -> Iterator[None]:
    """Moves phi by ``scale * epsilon`` in place, and puts back the very same numbers.

    Args:
        phi: tensors by name.
        epsilon: tensors of the same names and shapes.
        scale: standard deviation, or minus it for the other side of an antithetic pair.
    """
    saved = {name: p.detach().clone() for name, p in phi.items()}
    try:
        with torch.no_grad():
            for name, p in phi.items():
                p.add_(epsilon[name], alpha=scale)
        yield
    finally:
        with torch.no_grad():
            for name, p in phi.items():
                p.copy_(saved[name])


@torch.no_grad()
def play(episode: Episode) -> tuple[Tensor, Tensor, Adapted]:
    """Plays an episode without a graph.

    Args:
        episode: what to play.

    Returns:
        The mean reward, a scalar; the logits on the query set after the last step; and the learner
        after it.
    """
    query, rewards = episode.task.query, []
    for k, adapted in episode.walk(episode.start, range(episode.steps)):
        if k in episode.measured:
            predictions = logits(episode.learner, adapted.theta, query)
            rewards.append(episode.weight(k) * episode.reward(predictions, query.labels))
    return torch.stack(rewards).sum(), predictions, adapted


def _mix(seed: int, index: int) -> int:
    """A 63-bit seed from two numbers, so that neighbouring tasks share no noise (SplitMix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) >> 1
