"""What an estimator carries from one outer step to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning_evolve.inner_loop import Adapted
from lightning_evolve.meta_learners.base import State
from lightning_evolve.tasks import Batch, Task, Tensors


class Memory(NamedTuple):
    """A task under way, and the particles that play it.

    Args:
        task: what they adapt to until the horizon is reached.
        step: inner steps taken so far.
        particles: theta and the rule's state of each, the two of an antithetic pair side by side.
        drift: sum of the perturbations of phi that the first of each pair has lived through, by
            the names of phi; the second has lived through their opposites.
    """

    task: Task
    step: int
    particles: tuple[Adapted, ...]
    drift: tuple[Tensors, ...]


def plain(memory: Memory) -> dict[str, Any]:
    """Returns a memory as dictionaries, lists, tensors and numbers: what a checkpoint may hold.

    Args:
        memory: what to save.
    """

    def batch(b: Batch) -> dict[str, Any]:
        return {"inputs": dict(b.inputs), "labels": b.labels, "rows": b.rows}

    task = memory.task
    return {
        "task": {
            "support": [batch(b) for b in task.support],
            "query": batch(task.query),
            "index": task.index,
            "name": task.name,
            "family": task.family,
        },
        "step": memory.step,
        "particles": [
            {
                "theta": dict(p.theta),
                "step": p.state.step,
                "accumulators": {kind: dict(t) for kind, t in p.state.accumulators.items()},
            }
            for p in memory.particles
        ],
        "drift": [dict(d) for d in memory.drift],
    }


def restored(saved: dict[str, Any]) -> Memory:
    """Returns the memory that :func:`plain` was given.

    Args:
        saved: what it returned.
    """
    task = saved["task"]
    return Memory(
        task=Task(
            support=tuple(Batch(**b) for b in task["support"]),
            query=Batch(**task["query"]),
            index=task["index"],
            name=task["name"],
            family=task["family"],
        ),
        step=saved["step"],
        particles=tuple(
            Adapted(p["theta"], State(p["step"], p["accumulators"])) for p in saved["particles"]
        ),
        drift=tuple(saved["drift"]),
    )
