"""Loaders that put every rank on its own share of a stream, in order, from any step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_evolve.data.table import Table
from lightning_evolve.tasks import Batch, Task

EVALUATION_BATCH = 256  # rows of a batch that nothing is learned from


class StepSampler(DistributedSampler[Any]):
    """Numbers of outer steps, from the trainer's current one on.

    It is a ``DistributedSampler`` so that Lightning leaves it alone: any other it replaces by one
    that shuffles (Lightning issue 21131). The sharding is in the data that it numbers.

    Args:
        length: steps of an epoch.
        start: gives the outer step to begin with; asked at the start of each epoch, so that epochs
            go on along the stream and a resumed run goes on where it was.

    >>> list(StepSampler(3, start=lambda: 6))
    [6, 7, 8]
    """

    def __init__(self, length: int, start: Callable[[], int] = int) -> None:
        super().__init__(range(length), num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type]
        self.length = length
        self.start = start

    def __iter__(self) -> Iterator[int]:
        first = self.start()
        # Always a whole epoch: of a resumed one Lightning counts the batches that were done, and
        # stops at the end by itself.
        return iter(range(first, first + self.length))

    def __len__(self) -> int:
        return self.length


class StepLoader(DataLoader[Any]):
    """Batches of outer steps, the first one asked for as late as can be.

    Lightning makes the iterator before it restores a checkpoint when a module asks for
    ``trainer.estimated_stepping_batches``; workers must not start fetching from step 0 then.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing, for the step is in the trainer; having it tells Lightning that we can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load.

        Args:
            state_dict: what `state_dict` gave.
        """


@dataclass(frozen=True)
class TrainingTasks(Dataset[list[Task]]):
    """A rank's tasks of each outer step, or its part of one where there are fewer than ranks.

    Args:
        task: task of a global index.
        tasks_per_step: tasks of an outer step over all ranks, a multiple or a divisor of ``world``.
        rank: number of this process.
        world: how many processes there are.

    Example:
        >>> from torch import tensor
        >>> def task(index):
        ...     return Task((), Batch({}, tensor([]), tensor([])), index)
        >>> [(t.index, t.share) for t in TrainingTasks(task, tasks_per_step=4, rank=1, world=2)[0]]
        [(1, (0, 1)), (3, (0, 1))]
        >>> [(t.index, t.share) for t in TrainingTasks(task, tasks_per_step=2, rank=3, world=4)[0]]
        [(1, (1, 2))]
    """

    task: Callable[[int], Task]
    tasks_per_step: int
    rank: int
    world: int

    def __getitem__(self, step: int) -> list[Task]:
        first = step * self.tasks_per_step
        if self.tasks_per_step < self.world:
            part, place = divmod(self.rank, self.tasks_per_step)
            share = (part, self.world // self.tasks_per_step)
            return [self.task(first + place)._replace(share=share)]
        return [self.task(first + n) for n in range(self.rank, self.tasks_per_step, self.world)]


@dataclass(frozen=True)
class EvaluationTasks(Dataset[list[Task]]):
    """A rank's share of the tasks to evaluate on, one a batch.

    Every rank gets as many batches, so that all take part in whatever they do together; where the
    tasks have run out, a batch is empty.

    Args:
        task: task of a global index.
        count: tasks over all ranks.
        rank: number of this process.
        world: how many processes there are.
    """

    task: Callable[[int], Task]
    count: int
    rank: int
    world: int

    def __getitem__(self, number: int) -> list[Task]:
        index = number * self.world + self.rank
        return [self.task(index)] if index < self.count else []

    def __len__(self) -> int:
        return -(-self.count // self.world)


@dataclass(frozen=True)
class Batches(Dataset[Batch | list[Task]]):
    """A rank's share of rows to evaluate on, in as many batches as every other rank has.

    Args:
        table: the encoded rows.
        rows: the row numbers of all ranks.
        rank: number of this process.
        world: how many processes there are.
    """

    table: Table
    rows: Tensor
    rank: int
    world: int

    def __getitem__(self, number: int) -> Batch | list[Task]:
        first = number * EVALUATION_BATCH
        rows = self.rows[self.rank :: self.world][first : first + EVALUATION_BATCH]
        return self.table.batch(rows) if len(rows) else []

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.world * EVALUATION_BATCH))
