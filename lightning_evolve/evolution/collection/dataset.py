"""A dataset, as a source."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from lightning_evolve.data.rows import Rows
from lightning_evolve.evolution.collection.base import CHUNK, Bad, Read, Source, item_of
from lightning_evolve.evolution.collection.loading import Loading
from lightning_evolve.evolution.records import Record


class Dataset(Source):
    """A dataset, read once: train, validation and test in this order, rows in their order.

    Args:
        source: ``"docstrings"``, ``"topics"``, a file, a folder, or else the name of a dataset on
            the Hugging Face hub, of texts.
        subset: configuration of a dataset on the hub.
        text_column: where the text is.
        label_column: where the name of the class is.
        classes: classes to keep, all by default.
        cache_dir: where the docstrings are kept once they have been found.
    """

    def __init__(
        self,
        source: str,
        *,
        subset: str | None = None,
        text_column: str = "text",
        label_column: str = "label",
        classes: list[str] | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.name = f"dataset:{source}" + (f":{subset}" if subset else "")
        self._load = Loading(source, subset, text_column, label_column, classes, cache_dir)

    def read(self, position: Any) -> Iterator[Read]:
        """Reads the rows on from the last; the position is their number, and whether it is all."""
        done, whole = position or (0, False)
        if whole:
            return
        items = [
            (f"{split}:{number}", text, label)
            for split, part in self._load.splits().items()
            for number, (text, label) in enumerate(_pairs(part), start=1)
        ]
        now = time.time()
        for start in range(done, max(len(items), done + 1), CHUNK):
            chunk = [
                item_of(place, self.name, text, label, now)
                for place, text, label in items[start : start + CHUNK]
            ]
            records = [item for item in chunk if isinstance(item, Record)]
            bad = [item for item in chunk if isinstance(item, Bad)]
            end = min(start + CHUNK, len(items))
            yield Read(records, bad, [end, end >= len(items)])


def _pairs(rows: Rows) -> Iterator[tuple[str, str]]:
    assert rows.texts is not None
    yield from zip(rows.texts, rows.labels, strict=True)
