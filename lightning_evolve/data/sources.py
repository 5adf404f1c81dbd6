"""Sources: one name for everything that rows can come from."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from lightning_evolve.data.cache import Cache
from lightning_evolve.data.digits import digits
from lightning_evolve.data.docstrings import docstrings
from lightning_evolve.data.files import SUFFIXES, read_path
from lightning_evolve.data.hub import read_hub
from lightning_evolve.data.rows import Rows
from lightning_evolve.data.topics import topics
from lightning_evolve.errors import UsageError


def load(
    source: str,
    *,
    cache: Cache,
    subset: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    classes: list[str] | None = None,
) -> dict[str, Rows]:
    """Read a source.

    Args:
        source: ``"docstrings"``, ``"topics"``, ``"digits"``, a file, a folder, or else the name of
            a dataset on the Hugging Face hub.
        cache: where the docstrings are kept once they have been found.
        subset: configuration of a dataset on the hub.
        text_column: where the text is (or on the hub also the image).
        label_column: where the name of the class is.
        classes: classes to keep, all by default.

    Returns:
        Rows by split: always ``"train"``, and ``"validation"`` and ``"test"`` where the source
        has them.

    Raises:
        UsageError: there is no such source, or it is damaged, empty or without these columns.
    """
    path = Path(os.path.expanduser(source))
    if source == "docstrings":
        splits = {"train": docstrings(cache)}
    elif source == "topics":
        splits = {"train": topics()}
    elif source == "digits":
        splits = {"train": digits()}
    elif path.exists():
        splits = read_path(path, text_column, label_column)
    elif _looks_like_a_path(source):
        raise UsageError(
            f"source {source!r} does not exist: name a file or a folder, 'docstrings', 'topics', "
            "'digits' or a dataset on the Hugging Face hub"
        )
    else:
        splits = read_hub(source, subset, text_column, label_column)
    if subset is not None and (path.exists() or source in ("docstrings", "topics", "digits")):
        warnings.warn(
            f"subset {subset!r} is for datasets on the hub, and source {source!r} is none; it is "
            "not read",
            stacklevel=2,
        )
    if "train" not in splits:
        raise UsageError(
            f"source {source!r} has no train split, only {', '.join(splits) or 'nothing'}: "
            "name one that has, or a single file, which is split for you"
        )
    for name, rows in splits.items():
        if not len(rows):
            raise UsageError(
                f"the {name} split of source {source!r} has no rows: fill or remove it"
            )
    return splits if classes is None else _keep(splits, classes, source)


def _looks_like_a_path(source: str) -> bool:
    return (
        source.startswith((".", "~", os.sep))
        or source.count("/") > 1
        or source.lower().removesuffix(".gz").endswith(SUFFIXES)
    )


def _keep(splits: dict[str, Rows], classes: list[str], source: str) -> dict[str, Rows]:
    there = sorted({label for rows in splits.values() for label in rows.labels})
    if missing := [label for label in classes if label not in there]:
        shown = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
        raise UsageError(
            f"classes names {missing[0]!r}, which source {source!r} does not have: "
            f"choose from {shown}"
        )
    wanted = set(classes)
    return {
        name: rows.select(n for n, label in enumerate(rows.labels) if label in wanted)
        for name, rows in splits.items()
    }
