"""Images turned by quarters as further classes."""

from __future__ import annotations

import numpy as np
import torch

from lightning_evolve.data.arranged import Arranged
from lightning_evolve.data.rows import Rows, concatenate
from lightning_evolve.errors import UsageError

TURNS = 4  # classes that each class becomes


def with_rotations(arranged: Arranged) -> Arranged:
    """Add each class turned by 90, 180 and 270 degrees, a class each (Santoro et al. 2016).

    A turned class is in the split of its original.

    Args:
        arranged: square images, cleaned and split.

    Returns:
        Four times the rows and classes.

    Raises:
        UsageError: for texts, and images that are not square.
    """
    rows, names, splits, notes = arranged
    if rows.images is None:
        raise UsageError("rotations: true is for images, and the source has texts; leave it out")
    if rows.images.shape[1] != rows.images.shape[2]:
        raise UsageError(
            f"rotations: true is for square images, and these are {rows.images.shape[1]}x"
            f"{rows.images.shape[2]}; make them square, or leave it out"
        )
    turned = [rows] + [
        Rows(
            [f"{label} turned {90 * quarters}" for label in rows.labels],
            images=np.rot90(rows.images, quarters, axes=(1, 2)),
        )
        for quarters in range(1, TURNS)
    ]
    classes = sorted(names) + [
        f"{n} turned {90 * quarters}" for quarters in range(1, TURNS) for n in names
    ]
    return Arranged(
        concatenate(turned),
        tuple(sorted(classes)),
        {
            name: torch.cat([numbers + part * len(rows) for part in range(TURNS)])
            for name, numbers in splits.items()
        },
        notes,
    )
