"""What streams have in common whose validation and test classes never occur in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from lightning_evolve.data.arranged import Arranged
from lightning_evolve.data.checks import at_least
from lightning_evolve.data.held_out_classes import hold_out_classes
from lightning_evolve.data.rotations import TURNS, with_rotations
from lightning_evolve.data.rows import Rows
from lightning_evolve.data.splits import SPLITS, check_fractions
from lightning_evolve.errors import UsageError
from lightning_evolve.streams.base import Stream
from lightning_evolve.streams.loaders import EvaluationTasks
from lightning_evolve.tasks import DataSpec, Task


class HeldOutClassesStream(Stream):
    """Tasks of a split are drawn from classes that the other two splits do not have.

    Args:
        ways: classes of a task.
        fewest: rows that a class needs for a task.
        tasks_per_step: tasks of an outer step, over all ranks.
        steps_per_epoch: outer steps of an epoch.
        evaluated: how many tasks to validate and to test on.
        class_fractions: shares of the classes to train, to validate and to test on.
        rotations: whether each class of images turned by 90, 180 and 270 degrees is a class too.
        **source: arguments of `Stream`.

    Raises:
        UsageError: a number that is too small, or shares that do not add up to one.
    """

    _draw: dict[str, Callable[[int], Task]]
    """Gives the task of an index, by split; filled by `_begin`."""

    def __init__(
        self,
        *,
        ways: int,
        fewest: int,
        tasks_per_step: int,
        steps_per_epoch: int,
        evaluated: tuple[int, int],
        class_fractions: tuple[float, float, float],
        rotations: bool = False,
        **source: Any,
    ) -> None:
        super().__init__(tasks_per_step=tasks_per_step, **source)
        at_least(2, ways=ways)
        at_least(1, steps_per_epoch=steps_per_epoch)
        check_fractions(class_fractions)
        self.ways = ways
        self.fewest = fewest
        self.steps_per_epoch = steps_per_epoch
        self.evaluated = evaluated
        self.class_fractions = class_fractions
        self.rotations = rotations

    def tasks(self, split: str, count: int, offset: int = 0) -> list[Task]:
        """Tasks of a split, each a function of the seed, the split and its index only.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.
            count: how many.
            offset: index of the first one.

        Returns:
            The tasks of the indices ``offset .. offset + count - 1``.

        Raises:
            UsageError: there is no such split.
        """
        if split not in SPLITS:
            raise UsageError(f"there is no split {split!r}: choose from {', '.join(SPLITS)}")
        return [self._draw[split](index) for index in range(offset, offset + count)]

    def train_dataloader(self) -> DataLoader[list[Task]]:
        """This rank's tasks of one outer step a batch."""
        return self._training_loader(self.steps_per_epoch)

    def val_dataloader(self) -> DataLoader[list[Task]]:
        """Tasks of the validation classes, one a batch."""
        return self._task_loader("validation", self.evaluated[0])

    def test_dataloader(self) -> DataLoader[list[Task]]:
        """Tasks of the test classes, one a batch."""
        return self._task_loader("test", self.evaluated[1])

    def predict_dataloader(self) -> DataLoader[list[Task]]:
        """The tasks of the test."""
        return self.test_dataloader()

    def _arrange(self, source: dict[str, Rows]) -> Arranged:
        copies = TURNS if self.rotations else 1
        arranged = hold_out_classes(
            source, self.ways, self.fewest, self.class_fractions, self.split_seed, copies
        )
        return with_rotations(arranged) if self.rotations else arranged

    def _spec(self, vocab_size: int) -> DataSpec:
        return DataSpec(self.ways, vocab_size, self.table.shape)

    def _task_loader(self, split: str, count: int) -> DataLoader[list[Task]]:
        rank, world = self._ranks()
        return self._evaluation_loader(EvaluationTasks(self._draw[split], count, rank, world))
