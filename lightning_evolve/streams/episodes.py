"""Few-shot episodes."""

from __future__ import annotations

from typing import Any

from lightning_evolve.data.arranged import Arranged
from lightning_evolve.data.checks import at_least
from lightning_evolve.data.class_names import rows_of_class_names, with_class_names
from lightning_evolve.data.episodes import Episodes
from lightning_evolve.data.rows import Rows
from lightning_evolve.data.splits import SPLITS
from lightning_evolve.errors import UsageError
from lightning_evolve.streams.held_out_classes import HeldOutClassesStream

_MOST = 3  # beyond it an image may be turned inside out


class EpisodeStream(HeldOutClassesStream):
    """N-way K-shot episodes; the classes of validation and test never occur in training.

    Args:
        ways: classes of an episode.
        shots: support rows of each class; may be 0 where they have their names.
        queries: query rows of each class.
        tasks_per_step: episodes of an outer step, over all ranks.
        steps_per_epoch: outer steps of an epoch.
        val_tasks: episodes of a validation.
        test_tasks: episodes of a test.
        class_fractions: shares of the classes to train, to validate and to test on. A source whose
            own three splits have no class in common keeps them.
        rotations: whether each class of images turned by 90, 180 and 270 degrees is a class too,
            in the same split (Santoro et al. 2016).
        distortion: how far the images of training episodes are turned, stretched, sheared and
            shifted at random, from 0 for not at all to 3; 1 is up to 11 degrees, 15% and a
            twentieth of the width (:func:`lightning_evolve.data.distortions.distorted`).
        class_names: whether the name of each class, as a text, is a support row of it beside the
            shots (Luo et al. 2021).
        **source: arguments of `Stream`, such as ``source`` and ``encoder``.

    Raises:
        UsageError: a number that is out of range, or shares that do not add up to one.
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
        distortion: float = 0.0,
        class_names: bool = False,
        **source: Any,
    ) -> None:
        at_least(1, queries=queries, val_tasks=val_tasks, test_tasks=test_tasks)
        at_least(0 if class_names else 1, shots=shots)
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
        if not 0 <= distortion <= _MOST:
            raise UsageError(f"distortion is {distortion}: give 0 to {_MOST}")
        self.shots = shots
        self.queries = queries
        self.distortion = distortion
        self.class_names = class_names

    def _arrange(self, source: dict[str, Rows]) -> Arranged:
        arranged = super()._arrange(source)
        return with_class_names(arranged) if self.class_names else arranged

    def _begin(self) -> None:
        if self.distortion and "images" not in self.table.inputs:
            raise UsageError(
                f"distortion: {self.distortion} is for images, and the source has texts; leave it "
                "out"
            )
        classes = len(self.table.class_names)
        names = rows_of_class_names(self.table.labels, classes) if self.class_names else None
        self._draw = {
            split: Episodes(
                self.table,
                self.table.by_class(self.splits[split]),
                self.ways,
                self.shots,
                self.queries,
                seed=(self.seed, number),
                distortion=self.distortion if split == "train" else 0.0,
                names=names,
            ).task
            for number, split in enumerate(SPLITS)
        }
        self._training = self._draw["train"]
