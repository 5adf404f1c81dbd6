"""The texts of a dataset, loaded when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_evolve.data.rows import Rows
from lightning_evolve.data.splits import SPLITS
from lightning_evolve.errors import UsageError


@dataclass(frozen=True)
class Loading:
    """What to load, and from where.

    Args:
        source: see :class:`Dataset <lightning_evolve.evolution.collection.dataset.Dataset>`, and so
            all the others.
        subset: configuration of a dataset on the hub.
        text_column: where the text is.
        label_column: where the name of the class is.
        classes: classes to keep, all if None.
        cache_dir: where the docstrings are kept once they have been found.
    """

    source: str
    subset: str | None
    text_column: str
    label_column: str
    classes: list[str] | None
    cache_dir: str | None

    def splits(self) -> dict[str, Rows]:
        """Returns the rows of each split that there is: train, validation and test in this order.

        Raises:
            UsageError: it cannot be loaded, or is one of images.
        """
        # They need torch, which what only watches a folder does not.
        from lightning_evolve.data.cache import Cache
        from lightning_evolve.data.sources import load

        splits = load(
            self.source,
            cache=Cache(self.cache_dir),
            subset=self.subset,
            text_column=self.text_column,
            label_column=self.label_column,
            classes=self.classes,
        )
        if any(part.texts is None for part in splits.values()):
            raise UsageError(f"source {self.source!r} has images: name one of texts")
        return {name: splits[name] for name in SPLITS if name in splits}
