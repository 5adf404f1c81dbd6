"""The part that all streams have in common: from a source to a table of encoded rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_evolve.data.arranged import Arranged
from lightning_evolve.data.cache import Cache
from lightning_evolve.data.checks import at_least
from lightning_evolve.data.encoders import Encoder, Pixels, Words, encode
from lightning_evolve.data.floor import RawFeatures
from lightning_evolve.data.rows import Rows
from lightning_evolve.data.sources import load
from lightning_evolve.data.table import Table
from lightning_evolve.errors import UsageError
from lightning_evolve.streams.shared_out import SharedOut
from lightning_evolve.tasks import DataSpec, Tensors


class Stream(SharedOut, ABC):
    """Tasks that are drawn from one source; how they are shared out, see `SharedOut`.

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

    table: Table
    splits: dict[str, Tensor]

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
        super().__init__(tasks_per_step, seed, num_workers)
        at_least(0, split_seed=split_seed)
        if split_seed >= 2**32:
            raise UsageError(f"split_seed is {split_seed}: give a number below {2**32}")
        if not source:
            raise UsageError("source is empty: name a file, a folder, a dataset or 'docstrings'")
        self.source = source
        self.subset = subset
        self.text_column = text_column
        self.label_column = label_column
        self.classes = classes
        self.encoder = encoder
        self.cache = Cache(cache_dir)
        self.split_seed = split_seed
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
        encoder, training = self._learning()
        learned = training.digest() if encoder.learns else ""
        self.spec = replace(self._spec(vocab_size), encoding=learned)
        self._begin()
        self._ready = True

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

    def _learning(self) -> tuple[Encoder, Rows]:
        """The encoder, and the training rows that it may learn from."""
        assert self._rows is not None
        training = self._rows.select(self.splits["train"].tolist())
        return self.encoder or (Pixels() if training.kind == "images" else Words()), training

    def _encode(self, rows: Rows) -> tuple[Tensors, int]:
        """Encode rows by what was learned from the training rows."""
        return encode(*self._learning(), rows, self.cache)
