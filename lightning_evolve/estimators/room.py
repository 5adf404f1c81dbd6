"""How much memory a graph needs, and how much there is."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from lightning_evolve.estimators.base import Episode
from lightning_evolve.inner_loop import Adapted, Graph, detached, detached_state


def graph_bytes(episode: Episode, graph: Graph) -> int:
    """Measures what the graph of one inner step keeps, by taking the first one.

    Args:
        episode: what is to be played.
        graph: as in :func:`lightning_evolve.inner_loop.inner_steps`.

    Returns:
        Bytes of all tensors that the backward pass needs and that were not there before.
    """
    start = Adapted(
        detached(episode.start.theta, requires_grad=graph == "full"),
        detached_state(episode.start.state),
    )
    there = [
        *start.theta.values(),
        *(p for module in (episode.learner, episode.meta_learner) for p in module.parameters()),
        *(t for b in episode.task.support for t in (*b.inputs.values(), b.labels)),
    ]
    # Kept alive until all are counted, so that no address is given to another.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Detached, for a tensor that knows of the graph that keeps it would live for ever.
        kept[tensor.untyped_storage().data_ptr()] = value = tensor.detach()
        return value

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        for _ in episode.walk(start, range(1), graph):
            pass
    for t in there:
        kept.pop(t.untyped_storage().data_ptr(), None)
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def machine_bytes(episode: Episode) -> int:
    """Returns the memory of the device that an episode is played on; 0 where it can't be told.

    Args:
        episode: its theta says which device.
    """
    device = next(iter(episode.start.theta.values())).device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0
