"""How the tasks of a stream are shared out among processes, in order and from any step on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lightning_evolve.data.checks import at_least
from lightning_evolve.errors import UsageError
from lightning_evolve.streams.loaders import StepLoader, StepSampler, TrainingTasks
from lightning_evolve.tasks import DataSpec, Task


class SharedOut(LightningDataModule):
    """Tasks in an order that is the same for any number of ranks and workers.

    Training batches are lists of the tasks that this rank has in one outer step: task ``j`` of
    outer step ``i`` has the global index ``i * tasks_per_step + j`` and goes to rank ``j % ranks``.
    Where there are more ranks than tasks, rank ``r`` has part ``r // tasks_per_step`` of task
    ``r % tasks_per_step``, if the estimator can divide the work on a task.

    In evaluation the ranks share the data without repeating any. All have as many batches; where
    the data does not come out even, the last one of some ranks is an empty list.

    Args:
        tasks_per_step: tasks of an outer step, over all ranks.
        seed: what decides which tasks are drawn, and in which order.
        num_workers: processes that prepare batches ahead of the training.

    Attributes:
        spec: what the data looks like, for the learner.

    Raises:
        UsageError: a number that is too small.
    """

    spec: DataSpec
    _training: Callable[[int], Task]
    """Gives the training task of a global index; set by ``setup``."""

    def __init__(self, tasks_per_step: int, seed: int, num_workers: int) -> None:
        super().__init__()
        at_least(1, tasks_per_step=tasks_per_step)
        at_least(0, seed=seed, num_workers=num_workers)
        self.tasks_per_step = tasks_per_step
        self.seed = seed
        self.num_workers = num_workers

    def training_task(self, index: int) -> Task:
        """A training task.

        Args:
            index: its global index; the same index is the same task.
        """
        return self._training(index)

    def _ranks(self) -> tuple[int, int]:
        """This process's number, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _training_loader(self, steps: int) -> DataLoader[list[Task]]:
        rank, world = self._ranks()
        # Some estimators play a population, which several ranks can share.
        module = getattr(self.trainer, "lightning_module", None)
        share = getattr(module, "check_share", None)
        if share and world > self.tasks_per_step and world % self.tasks_per_step == 0:
            share(world // self.tasks_per_step)
        elif self.tasks_per_step % world:
            raise UsageError(
                f"tasks_per_step is {self.tasks_per_step} and there are {world} ranks, which must "
                f"all get as many tasks: give a multiple of {world}"
            )
        return StepLoader(
            TrainingTasks(self._training, self.tasks_per_step, rank, world),
            batch_size=None,
            sampler=StepSampler(steps, partial(self._first_step, steps)),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # else each epoch would draw from the global one
        )

    def _first_step(self, steps: int) -> int:
        """The mini-batch to go on with; an epoch's last optimizer step may take fewer of them."""
        if not self.trainer:
            return 0
        each = self.trainer.accumulate_grad_batches
        epochs, taken = divmod(self.trainer.global_step, -(-steps // each))
        return epochs * steps + taken * each

    def _evaluation_loader(self, items: Dataset[Any]) -> DataLoader[Any]:
        # The rank's share is taken already: the sampler only tells Lightning so.
        length = len(items)  # type: ignore[arg-type]
        return DataLoader(
            items,
            batch_size=None,
            sampler=StepSampler(length),
            num_workers=self.num_workers,
            generator=torch.Generator(),
        )
