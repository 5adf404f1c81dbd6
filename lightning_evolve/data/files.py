"""Files and folders as sources."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_evolve.data.cleaning import normalise
from lightning_evolve.data.columns import find_column
from lightning_evolve.data.formats import (
    READERS,
    read_lines,
    read_records,
    read_text,
    suffix_of,
)
from lightning_evolve.data.image_files import read_images
from lightning_evolve.data.rows import Rows, concatenate
from lightning_evolve.data.splits import split_name
from lightning_evolve.errors import UsageError

SUFFIXES = (*READERS, ".npz", ".txt")


def read_path(path: Path, text_column: str, label_column: str) -> dict[str, Rows]:
    """Read a file or a folder.

    Args:
        path: a file of texts or images with labels, or a folder with ``train``, ``validation``
            and ``test`` files or other files (all of them are ``"train"`` then) or one subfolder
            of ``.txt`` files a class, which may be within folders ``train`` and ``test``.
        text_column: where the text is.
        label_column: where the name of the class is.

    Returns:
        Rows by split.

    Raises:
        UsageError: nothing to read, a damaged or empty file, or one without these columns.
    """
    if path.is_file():
        return _read_file(path, text_column, label_column)
    places = sorted(place for place in path.iterdir() if not place.name.startswith("."))
    files = [place for place in places if suffix_of(place) in (*READERS, ".npz")]
    folders = [place for place in places if place.is_dir()]
    if named := [file for file in files if _split_of_file(file)]:
        return _gather(
            (str(_split_of_file(file)) if split == "train" else split, rows)
            for file in named
            for split, rows in _read_file(file, text_column, label_column).items()
        )
    if files:
        return _gather(
            item for file in files for item in _read_file(file, text_column, label_column).items()
        )
    if any(split_name(folder.name) for folder in folders):
        return _gather(
            (split, _read_classes(folder))
            for folder in folders
            if (split := split_name(folder.name))
        )
    if folders:
        return {"train": _read_classes(path)}
    raise UsageError(
        f"folder {str(path)!r} has nothing to read: put files of {', '.join(READERS)} or .npz "
        "into it, or one subfolder of .txt files a class"
    )


def read_texts(source: str, text_column: str) -> list[str]:
    """Read texts without labels.

    Args:
        source: a file; of ``.txt`` each line is a text.
        text_column: where the text is in files of other formats.

    Raises:
        UsageError: a missing, damaged or empty file, or one without this column.
    """
    path = Path(os.path.expanduser(source))
    if not path.is_file():
        raise UsageError(f"predict_source {source!r} is no file: name one with texts to predict")
    if suffix_of(path) == ".txt":
        return read_lines(path)
    found = read_records(path)
    text_column = find_column(str(path), found.columns, "text_column", text_column)
    return _texts(path, found.records, text_column)


def _split_of_file(path: Path) -> str | None:
    # Large datasets are cut into files such as train-00000-of-00002.parquet.
    stem = re.sub(r"-\d+-of-\d+$", "", path.name.partition(".")[0])
    return split_name(stem)


def _gather(parts: Iterable[tuple[str, Rows]]) -> dict[str, Rows]:
    gathered: dict[str, list[Rows]] = defaultdict(list)
    for split, rows in parts:
        gathered[split].append(rows)
    return {split: concatenate(pieces) for split, pieces in gathered.items()}


def _read_file(path: Path, text_column: str, label_column: str) -> dict[str, Rows]:
    if suffix_of(path) == ".npz":
        return read_images(path)
    found = read_records(path)
    text_column = find_column(str(path), found.columns, "text_column", text_column)
    label_column = find_column(str(path), found.columns, "label_column", label_column)
    labels = []
    for number, record in enumerate(found.records, start=1):
        label = record.get(label_column)
        if isinstance(label, dict | list | bytes):
            raise UsageError(
                f"row {number} of {str(path)!r} has {str(label)[:40]!r} for a {label_column}: give "
                "one name or number a row"
            )
        if label is None or label != label or not (name := normalise(str(label))):
            raise UsageError(
                f"row {number} of {str(path)!r} has no {label_column}: fill it or remove the row"
            )
        labels.append(name)
    return {"train": Rows(labels, texts=_texts(path, found.records, text_column))}


def _texts(path: Path, records: list[dict[str, Any]], column: str) -> list[str]:
    texts = []
    for number, record in enumerate(records, start=1):
        value = record.get(column)
        if isinstance(value, dict | list | bytes):
            raise UsageError(
                f"row {number} of {str(path)!r} has {str(value)[:40]!r} for a {column}: give one "
                "text a row"
            )
        # Cleaning drops and counts what is empty; NaN is what tables have in the place of a text.
        texts.append("" if value is None or value != value else str(value))
    return texts


def _read_classes(folder: Path) -> Rows:
    labels, texts = [], []
    for place in sorted(folder.iterdir()):
        for file in sorted(place.glob("*.txt")) if place.is_dir() else []:
            labels.append(place.name)
            texts.append(read_text(file))
    if not texts:
        raise UsageError(
            f"folder {str(folder)!r} has no class: give each a subfolder of .txt files, one a text"
        )
    return Rows(labels, texts=texts)
