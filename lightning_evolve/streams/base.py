"""The part that all streams have in common: from a source to a table of encoded rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_evolve.data.arranged import Arranged
from lightning_evolve.data.cache import Cache
from lightning_evolve.data.checks import at_least
from lightning_evolve.data.encoders import Encoder, Pixels, Words, encode
from lightning_evolve.data.floor import RawFeatures
from lightning_evolve.data.rows import Rows
from lightning_evolve.data.sources import load
from lightning_evolve.data.table import Table
from lightning_evolve.errors import UsageError
from lightning_evolve.streams.loaders import StepLoader, StepSampler, TrainingTasks
from lightning_evolve.tasks import DataSpec, Task, Tensors


class Stream(LightningDataModule, ABC):
    """Tasks in an order that is the same for any number of ranks and workers.

    Training batches are lists of the tasks that this rank has in one outer step: task ``j`` of
    outer step ``i`` has the global index ``i * tasks_per_step + j`` and goes to rank ``j % ranks``.
    Where there are more ranks than tasks, rank ``r`` has part ``r // tasks_per_step`` of task
    ``r % tasks_per_step``, if the estimator can divide the work on a task.

    In evaluation the ranks share the data without repeating any. All have as many batches; where
    the data does not come out even, the last one of some ranks is an empty list.

    Args:
        tasks_per_step: tasks of an outer step, over all ranks.
        source: ``"docstrings"``, ``"topics"``, ``"digits"``, a file, a folder, or else the name of
            a dataset on the Hugging Face hub.
        subset: configuration of a dataset on the hub.
        text_column: where the text is.
        label_column: where the name of the class is.
        classes: classes to keep, all by default.
        encoder: how rows become tensors; words, or pixels for images, by default.
        cache_dir: where what takes long is kept; ``lightning_evolve`` in the user's cache folder
            by default.
        seed: what decides which tasks are drawn, and in which order.
        split_seed: what decides which classes or rows are held out.
        num_workers: processes that prepare batches ahead of the training.

    Attributes:
        spec: what the data looks like, for the learner.
        table: the encoded rows.
        splits: row numbers by ``"train"``, ``"validation"`` and ``"test"``; rows are numbered
            after cleaning.

    Raises:
        UsageError: a number that is too small.
    """

    spec: DataSpec
    table: Table
    splits: dict[str, Tensor]
    _training: Callable[[int], Task]

    def __init__(
        self,
        *,
        tasks_per_step: int,
        source: str = "docstrings",
        subset: str | None = None,
        text_column: str = "text",
        label_column: str = "label",
        classes: list[str] | None = None,
        encoder: Encoder | None = None,
        cache_dir: str | None = None,
        seed: int = 0,
        split_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        at_least(1, tasks_per_step=tasks_per_step)
        at_least(0, seed=seed, split_seed=split_seed, num_workers=num_workers)
        self.tasks_per_step = tasks_per_step
        self.source = source
        self.subset = subset
        self.text_column = text_column
        self.label_column = label_column
        self.classes = classes
        self.encoder = encoder
        self.cache = Cache(cache_dir)
        self.seed = seed
        self.split_seed = split_seed
        self.num_workers = num_workers
        self._rows: Rows | None = None
        self._ready = False
        self._raw_features: RawFeatures | None = None

    @abstractmethod
    def _arrange(self, source: dict[str, Rows]) -> Arranged:
        """Clean and split what was read."""

    @abstractmethod
    def _spec(self, vocab_size: int) -> DataSpec:
        """What the data looks like, once there is a table."""

    @abstractmethod
    def _begin(self) -> None:
        """Get ready to draw tasks from the table; sets ``_training``."""

    def prepare_data(self) -> None:
        """Fill the cache on one rank, so that the others find all of it there."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read, clean, split and encode the source; does nothing the second time.

        Args:
            stage: which part of the trainer asks.

        Raises:
            UsageError: what is wrong with the source.
        """
        if self._ready:
            return
        arranged = self._arrange(
            load(
                self.source,
                cache=self.cache,
                subset=self.subset,
                text_column=self.text_column,
                label_column=self.label_column,
                classes=self.classes,
            )
        )
        if arranged.notes:
            rank_zero_warn(f"source {self.source!r}: {'; '.join(arranged.notes)}")
        self._rows, names, self.splits, _ = arranged
        inputs, vocab_size = self._encode(self._rows)
        numbers = {name: number for number, name in enumerate(names)}
        labels = torch.tensor([numbers[label] for label in self._rows.labels])
        self.table = Table(inputs, labels, names)
        self.spec = self._spec(vocab_size)
        self._begin()
        self._ready = True

    def training_task(self, index: int) -> Task:
        """A training task.

        Args:
            index: its global index; the same index is the same task.
        """
        return self._training(index)

    def floor_features(self, rows: Tensor) -> Any:
        """Raw features of rows, for the no-learning floor.

        Args:
            rows: row numbers, int64 of shape ``[rows]``.

        Returns:
            A matrix of ``[rows, features]``: TF-IDF fitted on the training rows (sparse), or flat
            pixels.
        """
        if self._raw_features is None:
            assert self._rows is not None
            self._raw_features = RawFeatures(self._rows, self.splits["train"])
        return self._raw_features(rows)

    def raw(self, rows: Tensor) -> list[str]:
        """What a person knows rows by: the text, or the row number of an image."""
        assert self._rows is not None
        texts = self._rows.texts
        return [str(n) if texts is None else texts[n] for n in rows.tolist()]

    def _encode(self, rows: Rows) -> tuple[Tensors, int]:
        """Encode rows by what was learned from the training rows."""
        assert self._rows is not None
        training = self._rows.select(self.splits["train"].tolist())
        encoder = self.encoder or (Pixels() if training.kind == "images" else Words())
        return encode(encoder, training, rows, self.cache)

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
            sampler=StepSampler(steps, self._first_step),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # else each epoch would draw from the global one
        )

    def _first_step(self) -> int:
        return (
            self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0
        )

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
