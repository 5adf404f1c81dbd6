"""Finding the column that holds the texts or the classes."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_evolve.errors import UsageError

# What public datasets call the two columns; looked for only where the user names no other column.
_ALIASES = {
    "text": ("sentence", "utterance", "content", "review"),
    "label": ("labels", "intent", "category", "topic", "class"),
}


def find_column(source: str, columns: Sequence[str], argument: str, wanted: str) -> str:
    """Returns the column of a name, or the only one with a usual other name for it.

    Args:
        source: what is read, for the sentence.
        columns: the columns that there are.
        argument: what the user would set, ``"text_column"`` or ``"label_column"``.
        wanted: the text column or the label column; the defaults ``"text"`` and ``"label"`` may
            also be called by another usual name.

    Raises:
        UsageError: there is no such column, or there are several that it may be.

    >>> find_column("a.csv", ["text", "intent"], "label_column", "label")
    'intent'
    """
    if wanted in columns:
        return wanted
    found = [column for column in columns if column in _ALIASES.get(wanted, ())]
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"{source!r} has no column {wanted!r}: set {argument} to one of {', '.join(columns)[:200]}"
    )
