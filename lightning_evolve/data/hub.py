"""Datasets of the Hugging Face hub, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_evolve.data.columns import find_column
from lightning_evolve.data.rows import Rows
from lightning_evolve.data.splits import split_name
from lightning_evolve.errors import UsageError
from lightning_evolve.learners.checkpoints import hub


def read_hub(name: str, subset: str | None, text_column: str, label_column: str) -> dict[str, Rows]:
    """Download a dataset, or find it where ``datasets`` keeps what it has downloaded.

    Args:
        name: name on the hub.
        subset: its configuration, where it has several.
        text_column: where the text or the image is.
        label_column: where the class is, as a name or a number that the dataset has a name for.

    Returns:
        Rows by split; those without labels are left out.

    Raises:
        UsageError: no such dataset, subset or column, or no network.
    """
    import datasets

    try:
        with hub():
            found = datasets.load_dataset(name, subset)
    except Exception as error:  # the hub, the network and the builders each have their own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        part = f" (subset {subset!r})" if subset else ""
        raise UsageError(
            f"source {name!r}{part} is no file or folder and the Hugging Face hub did not give it: "
            f"check the name and the network, or name 'docstrings', 'topics' or 'digits' ({reason})"
        ) from error
    return rows_of(found, name, text_column, label_column)


def rows_of(
    dataset: Mapping[str, Any], name: str, text_column: str, label_column: str
) -> dict[str, Rows]:
    """Returns the rows of a ``datasets.DatasetDict`` by split.

    Args:
        dataset: parts by their name; those that are no split are left out.
        name: of the dataset, for messages.
        text_column: where the texts or images are, as of `read_hub`.
        label_column: where the labels are.

    Raises:
        UsageError: if a column is missing, or holds something else.
    """
    from datasets import ClassLabel, Image

    splits = {}
    for part, data in dataset.items():
        split = split_name(part)
        if split is None:
            continue
        texts = find_column(name, data.column_names, "text_column", text_column)
        classes = find_column(name, data.column_names, "label_column", label_column)
        feature = data.features[classes]
        numbered = isinstance(feature, ClassLabel)
        hidden = (None, -1) if numbered else (None,)
        data = data.select([n for n, y in enumerate(data[classes]) if y not in hidden])
        labels = [feature.int2str(y) if numbered else str(y) for y in data[classes]]
        if not labels:
            continue
        if isinstance(data.features[texts], Image):
            # A palette's numbers are no colours.
            images = [
                np.asarray(image.convert("RGB") if image.mode == "P" else image)
                for image in data[texts]
            ]
            if shapes := {image.shape for image in images[1:]} - {images[0].shape}:
                raise UsageError(
                    f"source {name!r} has images of several sizes, such as {images[0].shape} and "
                    f"{shapes.pop()}: name a dataset with images of one size"
                )
            splits[split] = Rows(labels, images=np.stack(images))
        else:
            splits[split] = Rows(labels, texts=[str(text or "") for text in data[texts]])
    return splits
