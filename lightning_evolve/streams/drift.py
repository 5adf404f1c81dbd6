"""A stream that drifts: other classes take over after every period."""

from __future__ import annotations

from typing import Any

from lightning_evolve.data.checks import at_least
from lightning_evolve.data.drift import Drift
from lightning_evolve.data.splits import SPLITS
from lightning_evolve.streams.held_out_classes import HeldOutClassesStream


class DriftStream(HeldOutClassesStream):
    """Mini-batches in an order that matters, for a learner that carries on along them.

    In training each task is one step of the stream: adapt on a mini-batch, score on another of the
    same classes. Every ``period`` tasks the classes change. In evaluation a task is a whole
    experience: ``period`` mini-batches to adapt on, and rows of the same classes to score on that
    are in none of them. The classes of validation and test never occur in training.

    Args:
        ways: classes at a time.
        period: tasks until the classes change.
        batch_size: rows of a mini-batch; all classes are as likely as each other.
        tasks_per_step: tasks of an outer step, over all ranks.
        steps_per_epoch: outer steps of an epoch.
        val_experiences: experiences of a validation.
        test_experiences: experiences of a test.
        class_fractions: shares of the classes to train, to validate and to test on. A source whose
            own three splits have no class in common keeps them.
        **source: arguments of `Stream`, such as ``source`` and ``encoder``.

    Raises:
        UsageError: a number that is too small, or shares that do not add up to one.
    """

    def __init__(
        self,
        ways: int = 10,
        period: int = 60,
        batch_size: int = 20,
        tasks_per_step: int = 1,
        steps_per_epoch: int = 120,
        val_experiences: int = 5,
        test_experiences: int = 10,
        class_fractions: tuple[float, float, float] = (0.5, 0.2, 0.3),
        **source: Any,
    ) -> None:
        at_least(1, ways=ways, period=period, batch_size=batch_size)
        at_least(1, val_experiences=val_experiences, test_experiences=test_experiences)
        super().__init__(
            ways=ways,
            # Two mini-batches without a common row, and of three rows one to score on.
            fewest=max(3, 2 * -(-batch_size // ways)),
            tasks_per_step=tasks_per_step,
            steps_per_epoch=steps_per_epoch,
            evaluated=(val_experiences, test_experiences),
            class_fractions=class_fractions,
            **source,
        )
        self.period = period
        self.batch_size = batch_size

    def _begin(self) -> None:
        sequences = {
            split: Drift(
                self.table,
                self.table.by_class(self.splits[split]),
                self.ways,
                self.period,
                self.batch_size,
                seed=(self.seed, number),
            )
            for number, split in enumerate(SPLITS)
        }
        self._draw = {split: drift.experience for split, drift in sequences.items()}
        self._training = sequences["train"].task
