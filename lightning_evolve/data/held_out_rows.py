"""The ordinary split: rows to train, to validate and to test on, all of the same classes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lightning_evolve.data.arranged import Arranged
from lightning_evolve.data.cleaning import clean
from lightning_evolve.data.rows import Rows, concatenate
from lightning_evolve.data.splits import SPLITS, sample_rows
from lightning_evolve.errors import UsageError


class Sizes(NamedTuple):
    """How large the splits are to be.

    Args:
        train: rows to draw of the training rows, all by default.
        validation: rows to draw of the validation rows, all by default.
        test: rows to draw of the test rows, all by default.
        validation_fraction: share of the training rows to validate on where the source has none.
        test_fraction: share of the training rows to test on where the source has none.
    """

    train: int | None
    validation: int | None
    test: int | None
    validation_fraction: float
    test_fraction: float


def hold_out_rows(source: dict[str, Rows], sizes: Sizes, seed: int) -> Arranged:
    """Clean a source's splits, complete them, and draw as many rows as are asked for.

    What is drawn has the classes in proportion. No text is in two splits: it stays in the test
    split, else in the validation split.

    Args:
        source: rows by split.
        sizes: how large the splits are to be.
        seed: what decides which rows are drawn.

    Raises:
        UsageError: a split is too small, or has a class that is not in the training rows.
    """
    splits, notes = {}, []
    taken: set[str] = set()
    for name in reversed(SPLITS):
        if name in source:
            rows, dropped = clean(source[name])
            own = [n for n, key in enumerate(rows.keys) if key not in taken]
            shared = len(rows) - len(own)
            if dropped:
                notes.append(f"{name}: {dropped}")
            if shared:
                notes.append(f"{name}: dropped {shared} of its rows, whose content is held out too")
            splits[name] = rows.select(own)
            taken.update(splits[name].keys)

    shares = {"test": sizes.test_fraction, "validation": sizes.validation_fraction}
    whole = len(splits["train"])
    for name, share in shares.items():
        if name not in splits:
            held_out, rest = _sample(splits["train"], "train", max(1, round(share * whole)), seed)
            splits[name], splits["train"] = held_out, rest
    for name in SPLITS:
        count = getattr(sizes, name)
        if count is not None:
            splits[name], _ = _sample(splits[name], name, count, seed)
        if not len(splits[name]):
            raise UsageError(f"the {name} split has no rows left: name a source with more")

    class_names = tuple(sorted(set(splits["train"].labels)))
    for name in SPLITS:
        if unknown := sorted(set(splits[name].labels) - set(class_names)):
            raise UsageError(
                f"label {unknown[0]!r} is in the {name} split and not among the train split's "
                f"{len(splits['train'])} rows: add such rows there, or leave it out with classes"
            )
    if len(class_names) < 2:
        raise UsageError(
            f"the train split has the one class {class_names[0]!r}: name a source with two or more"
        )
    lengths = [len(splits[name]) for name in SPLITS]
    numbers = torch.split(torch.arange(sum(lengths)), lengths)
    rows = concatenate([splits[name] for name in SPLITS])
    return Arranged(rows, class_names, dict(zip(SPLITS, numbers, strict=True)), notes)


def _sample(rows: Rows, name: str, count: int, seed: int) -> tuple[Rows, Rows]:
    if count > len(rows):
        raise UsageError(
            f"{count} rows of the {name} split are asked for and it has {len(rows)}: ask for fewer"
        )
    drawn, others = sample_rows(rows.labels, count, seed)
    return rows.select(drawn), rows.select(others)
