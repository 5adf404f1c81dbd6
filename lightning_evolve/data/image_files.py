"""Images in numpy's npz files."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from lightning_evolve.data.rows import Images, Rows
from lightning_evolve.data.splits import split_name
from lightning_evolve.errors import UsageError


def read_images(path: Path) -> dict[str, Rows]:
    """Read images with labels; pickled objects are refused.

    Args:
        path: an npz file with the arrays ``x`` (``[rows, height, width]``, with the channels last
            where there are several) and ``y`` (``[rows]``), or ``x_train``, ``y_train`` and the
            same of ``test`` and of ``validation``.

    Returns:
        Rows by split, ``x`` and ``y`` being ``"train"``.

    Raises:
        UsageError: the file is damaged, or its arrays are other ones.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name.startswith(("x", "y"))}
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UsageError(
            f"{str(path)!r} is no whole npz file of plain numbers ({reason}): save it anew with "
            "numpy.savez_compressed"
        ) from error
    splits = {}
    for name, images in arrays.items():
        part, _, rest = name.partition("_")
        split = split_name(rest or "train")
        if part == "x" and split is not None:
            splits[split] = _rows(path, name, images, arrays.get("y" + name[1:]))
    if not splits:
        raise UsageError(
            f"{str(path)!r} has no images: give it the arrays x and y, or x_train, y_train, x_test "
            "and y_test"
        )
    return splits


def _rows(path: Path, name: str, images: Images, labels: Images | None) -> Rows:
    if labels is None or labels.shape != images.shape[:1]:
        there = "absent" if labels is None else f"of shape {list(labels.shape)}"
        raise UsageError(
            f"{name} of {str(path)!r} has {len(images)} images and y{name[1:]} is {there}: "
            "give one label an image"
        )
    if images.ndim not in (3, 4) or images.dtype not in (np.uint8, np.float32, np.float64):
        raise UsageError(
            f"{name} of {str(path)!r} is {images.dtype} of shape {list(images.shape)}: give "
            "uint8 or floats of shape [rows, height, width] or [rows, height, width, channels]"
        )
    return Rows([str(label) for label in labels.tolist()], images=images)
