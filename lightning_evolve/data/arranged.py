"""A source that is ready to be encoded."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_evolve.data.rows import Rows


class Arranged(NamedTuple):
    """A source, cleaned and split.

    Args:
        rows: all rows that are used.
        class_names: names of their classes in alphabetical order, which is how they are numbered.
        splits: row numbers by ``"train"``, ``"validation"`` and ``"test"``.
        notes: what the user should hear of, such as rows that were dropped.
    """

    rows: Rows
    class_names: tuple[str, ...]
    splits: dict[str, Tensor]
    notes: list[str]
