"""Ordinary training, validation and test data."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from lightning_evolve.data.arranged import Arranged
from lightning_evolve.data.checks import at_least
from lightning_evolve.data.cleaning import normalise
from lightning_evolve.data.files import read_texts
from lightning_evolve.data.held_out_rows import Sizes, hold_out_rows
from lightning_evolve.data.minibatches import MiniBatches
from lightning_evolve.data.rows import Rows, concatenate
from lightning_evolve.data.table import Table
from lightning_evolve.errors import UsageError
from lightning_evolve.streams.base import Stream
from lightning_evolve.streams.loaders import Batches
from lightning_evolve.tasks import Batch, DataSpec, Task


class BatchStream(Stream):
    """Mini-batches of fixed classes; each training task is a pair of them.

    A task adapts on one mini-batch and scores on the one after it, which is adapted on next. An
    epoch adapts on each training row at most once, in an order of its own: the last mini-batch is
    only scored on, and tasks that do not fill an outer step are left out. Validation, test and
    prediction give batches of rows.

    Args:
        batch_size: rows of a mini-batch; a task has two.
        tasks_per_step: tasks of an outer step, over all ranks.
        train_rows: training rows to draw, with the classes in proportion; all by default.
        validation_rows: validation rows to draw; all by default.
        test_rows: test rows to draw; all by default.
        validation_fraction: share of the training rows to validate on where the source has no
            validation split.
        test_fraction: share of the training rows to test on where the source has no test split.
        predict_source: file of texts without labels to predict on, one a line or in the text
            column; the test split by default.
        **source: arguments of `Stream`, such as ``source`` and ``encoder``.

    Raises:
        UsageError: a number that is too small, or shares that leave nothing to train on.
    """

    def __init__(
        self,
        batch_size: int = 32,
        tasks_per_step: int = 1,
        train_rows: int | None = None,
        validation_rows: int | None = None,
        test_rows: int | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.2,
        predict_source: str | None = None,
        **source: Any,
    ) -> None:
        super().__init__(tasks_per_step=tasks_per_step, **source)
        at_least(1, batch_size=batch_size)
        at_least(1, train_rows=train_rows, validation_rows=validation_rows, test_rows=test_rows)
        shares = (validation_fraction, test_fraction)
        if not (min(shares) > 0 and sum(shares) < 1):
            raise UsageError(
                f"validation_fraction is {validation_fraction} and test_fraction {test_fraction}: "
                "give two positive shares that add up to less than 1"
            )
        self.batch_size = batch_size
        self.sizes = Sizes(train_rows, validation_rows, test_rows, *shares)
        self.predict_source = predict_source

    def split(self, name: str) -> Batch:
        """All rows of a split in one batch.

        Args:
            name: ``"train"``, ``"validation"``, ``"test"``, or ``"predict"`` where there is a
                ``predict_source``.

        Raises:
            UsageError: there is no such split.
        """
        if name not in self.splits:
            raise UsageError(f"there is no split {name!r}: choose from {', '.join(self.splits)}")
        return self.table.batch(self.splits[name])

    def train_dataloader(self) -> DataLoader[list[Task]]:
        """This rank's pairs of one outer step a batch."""
        return self._training_loader(self.steps_per_epoch)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation rows."""
        return self._row_loader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test rows."""
        return self._row_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The rows of ``predict_source``, labelled -1, or else the test rows."""
        return self._row_loader("predict" if self.predict_source else "test")

    def _row_loader(self, split: str) -> DataLoader[Batch]:
        return self._evaluation_loader(Batches(self.table, self.splits[split], *self._ranks()))

    def _arrange(self, source: dict[str, Rows]) -> Arranged:
        return hold_out_rows(source, self.sizes, self.split_seed)

    def _spec(self, vocab_size: int) -> DataSpec:
        names = self.table.class_names
        return DataSpec(len(names), vocab_size, self.table.shape, names)

    def _begin(self) -> None:
        if self.predict_source:
            self._put_first(self.predict_source)
        rows = self.splits["train"]
        # The last mini-batch is only scored on.
        self.steps_per_epoch = (len(rows) // self.batch_size - 1) // self.tasks_per_step
        if self.steps_per_epoch < 1:
            raise UsageError(
                f"an outer step takes {self.tasks_per_step + 1} mini-batches of {self.batch_size} "
                f"rows and there are {len(rows)} training rows: lower batch_size or tasks_per_step"
            )
        per_epoch = self.steps_per_epoch * self.tasks_per_step
        self._training = MiniBatches(
            self.table, rows, self.batch_size, per_epoch, seed=(self.seed,)
        ).task

    def _put_first(self, predict_source: str) -> None:
        """Put the texts to predict before all others: their row number is that in their file."""
        assert self._rows is not None
        texts = [normalise(text) for text in read_texts(predict_source, self.text_column)]
        unlabelled = Rows([""] * len(texts), texts=texts)
        inputs, _ = self._encode(unlabelled)
        count = len(texts)
        self._rows = concatenate([unlabelled, self._rows])
        self.table = Table(
            {name: torch.cat([inputs[name], tensor]) for name, tensor in self.table.inputs.items()},
            torch.cat([torch.full((count,), -1), self.table.labels]),
            self.table.class_names,
        )
        self.splits = {name: rows + count for name, rows in self.splits.items()}
        self.splits["predict"] = torch.arange(count)
