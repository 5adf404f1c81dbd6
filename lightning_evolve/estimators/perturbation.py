"""Gaussian perturbations of phi, and the runs that are played under them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_evolve.estimators.base import Episode
from lightning_evolve.inner_loop import Adapted
from lightning_evolve.tasks import Tensors


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
    rewards = []
    for k, adapted in episode.walk(episode.start, range(episode.steps)):
        if k in episode.measured:
            predictions, reward = episode.score(adapted.theta, k)
            rewards.append(episode.weight(k) * reward)
    return torch.stack(rewards).sum(), predictions, adapted
