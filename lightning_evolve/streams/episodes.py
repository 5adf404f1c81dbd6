"""Few-shot episodes."""

from __future__ import annotations

from typing import Any

from lightning_evolve.data.checks import at_least
from lightning_evolve.data.episodes import Episodes
from lightning_evolve.data.splits import SPLITS
from lightning_evolve.streams.held_out_classes import HeldOutClassesStream


class EpisodeStream(HeldOutClassesStream):
    """N-way K-shot episodes; the classes of validation and test never occur in training.

    Args:
        ways: classes of an episode.
        shots: support rows of each class.
        queries: query rows of each class.
        tasks_per_step: episodes of an outer step, over all ranks.
        steps_per_epoch: outer steps of an epoch.
        val_tasks: episodes of a validation.
        test_tasks: episodes of a test.
        class_fractions: shares of the classes to train, to validate and to test on. A source whose
            own three splits have no class in common keeps them.
        rotations: whether each class of images turned by 90, 180 and 270 degrees is a class too,
            in the same split (Santoro et al. 2016).
        **source: arguments of `Stream`, such as ``source`` and ``encoder``.

    Raises:
        UsageError: a number that is too small, or shares that do not add up to one.
    """

    def __init__(
        self,
        ways: int = 5,
        shots: int = 5,
        queries: int = 15,
        tasks_per_step: int = 4,
        steps_per_epoch: int = 100,
        val_tasks: int = 50,
        test_tasks: int = 100,
        class_fractions: tuple[float, float, float] = (0.5, 0.2, 0.3),
        rotations: bool = False,
        **source: Any,
    ) -> None:
        at_least(1, shots=shots, queries=queries, val_tasks=val_tasks, test_tasks=test_tasks)
        super().__init__(
            ways=ways,
            fewest=shots + queries,
            tasks_per_step=tasks_per_step,
            steps_per_epoch=steps_per_epoch,
            evaluated=(val_tasks, test_tasks),
            class_fractions=class_fractions,
            rotations=rotations,
            **source,
        )
        self.shots = shots
        self.queries = queries

    def _begin(self) -> None:
        self._draw = {
            split: Episodes(
                self.table,
                self.table.by_class(self.splits[split]),
                self.ways,
                self.shots,
                self.queries,
                seed=(self.seed, number),
            ).task
            for number, split in enumerate(SPLITS)
        }
        self._training = self._draw["train"]
