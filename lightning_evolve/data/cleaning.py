"""Cleaning: one form for each text, nothing empty, nothing twice, and a count of what went."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from lightning_evolve.data.rows import Rows


@dataclass(frozen=True)
class Dropped:
    """How many rows cleaning dropped, and why.

    Args:
        empty: rows without any text.
        duplicates: rows that repeat an earlier one with the same label.
        conflicts: rows whose text occurs with different labels; all of them go, for none of the
            labels is known to be the right one.
    """

    empty: int = 0
    duplicates: int = 0
    conflicts: int = 0

    def __str__(self) -> str:
        return (
            f"{self.empty} empty, {self.duplicates} duplicate and "
            f"{self.conflicts} contradictorily labelled rows dropped"
        )

    def __bool__(self) -> bool:
        return bool(self.empty or self.duplicates or self.conflicts)


def normalise(text: str) -> str:
    r"""Returns a text in Unicode's composed form (NFC), each run of white space as one space.

    Args:
        text: as it was written.

    >>> normalise(" so\n  cafe\u0301 ") == "so caf\u00e9"
    True
    """
    # Half of a pair of surrogates, as of an emoji that was cut off, can be written nowhere.
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(unicodedata.normalize("NFC", whole).split())


def clean(rows: Rows) -> tuple[Rows, Dropped]:
    """Normalise texts and drop empty, duplicate and contradictory rows.

    Args:
        rows: texts or images; of images only duplicates and contradictions are dropped.

    Returns:
        The rows that are left, in their order, and what was dropped.

    >>> rows = Rows(["a", "a", "b", "a", "b"], texts=["x", " x", "y", "y", ""])
    >>> left, dropped = clean(rows)
    >>> left.texts, str(dropped)
    (['x'], '1 empty, 1 duplicate and 2 contradictorily labelled rows dropped')
    """
    if rows.texts is not None:
        rows = Rows(rows.labels, texts=[normalise(text) for text in rows.texts])
    keys = rows.keys
    label_of: dict[str, str] = {}
    contradictory = {
        key
        for key, label in zip(keys, rows.labels, strict=True)
        if label_of.setdefault(key, label) != label
    }
    seen: set[str] = set()
    kept: list[int] = []
    empty = duplicates = conflicts = 0
    for number, key in enumerate(keys):
        if not key:
            empty += 1
        elif key in contradictory:
            conflicts += 1
        elif key in seen:
            duplicates += 1
        else:
            seen.add(key)
            kept.append(number)
    return rows.select(kept), Dropped(empty, duplicates, conflicts)
