"""Tasks under way, over outer steps, processes and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import Memory
from lightning_evolve.estimators.memory import plain, restored


def under_way(
    memories: list[Memory | None], tasks: int, device: torch.device
) -> list[Memory | None]:
    """Returns what the tasks of an outer step go on from, None for those that begin.

    Args:
        memories: what the outer step before has left; empty before the first.
        tasks: this process's tasks of an outer step.
        device: where they are played.

    Raises:
        UsageError: if there are more or fewer than there were.
    """
    if not any(memories):
        return [None] * tasks
    if len(memories) != tasks:
        raise UsageError(
            f"a process has {len(memories)} tasks under way, and {tasks} in this outer step; give "
            "the --data.tasks_per_step that the run began with"
        )
    placed: list[Memory | None] = move_data_to_device(memories, device)
    return placed


def saved(memories: list[Memory | None], processes: int) -> list[dict[str, Any] | None]:
    """Returns the memories of all processes for a checkpoint, in the order of the stream's tasks.

    Args:
        memories: this process's own, as many as every other one's.
        processes: how many there are; all must call it.

    Returns:
        All memories on the process that writes; on others it does not matter what.
    """
    ours = [plain(move_data_to_device(m, "cpu")) if m else None for m in memories]
    if processes == 1 or not memories:
        return ours
    everyone = [ours] * processes if dist.get_rank() == 0 else None
    dist.gather_object(ours, everyone)
    # Task j of an outer step goes to process j % processes.
    return [memory for tasks in zip(*everyone or [ours], strict=True) for memory in tasks]


def loaded(
    memories: Sequence[dict[str, Any] | None], process: int, processes: int
) -> list[Memory | None]:
    """Returns a process's share of what :func:`saved` gave, for any number of processes.

    Args:
        memories: from the checkpoint.
        process: number of this process.
        processes: how many there are.
    """
    return [restored(m) if m else None for m in memories[process::processes]]
