"""Splits: which classes or rows are held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_evolve.errors import UsageError

SPLITS = ("train", "validation", "test")
_ALIASES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def split_name(name: str) -> str | None:
    """The split that a file's, folder's or dataset's name stands for.

    >>> split_name("dev"), split_name("test"), split_name("notes")
    ('validation', 'test', None)
    """
    return _ALIASES.get(name.lower())


def split_classes(
    classes: Sequence[int], fractions: Sequence[float], seed: int
) -> dict[str, list[int]]:
    """Part classes into those to meta-train, to meta-validate and to meta-test on.

    Args:
        classes: numbers of the classes.
        fractions: shares of the three splits, which add up to one.
        seed: what decides which class goes where.

    Returns:
        Numbers of the classes by split, each in ascending order; none is in two.

    >>> {name: len(part) for name, part in split_classes(range(5), (0.6, 0.2, 0.2), 0).items()}
    {'train': 3, 'validation': 1, 'test': 1}
    """
    order = np.random.default_rng([seed]).permutation(np.array(classes))
    ends = np.cumsum(fractions) * len(order)
    parts = np.split(order, np.rint(ends[:-1]).astype(int))
    return {name: sorted(part.tolist()) for name, part in zip(SPLITS, parts, strict=True)}


def sample_rows(labels: Sequence[str], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Draw rows with the classes in proportion.

    Args:
        labels: class of each row.
        count: how many to draw, at most all.
        seed: what decides which rows are drawn.

    Returns:
        Numbers of the rows that were drawn, and of all others, both in ascending order.

    >>> labels = ["a", "a", "a", "a", "b", "b"]
    >>> drawn, others = sample_rows(labels, 3, seed=0)
    >>> [labels[number] for number in drawn], sorted(drawn + others)
    (['a', 'a', 'b'], [0, 1, 2, 3, 4, 5])
    """
    from sklearn.utils import resample

    drawn = resample(
        np.arange(len(labels)), replace=False, n_samples=count, random_state=seed, stratify=labels
    )
    chosen = set(drawn.tolist())
    return sorted(chosen), [number for number in range(len(labels)) if number not in chosen]


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse shares of the three splits that are not positive or do not add up to one.

    Raises:
        UsageError: naming the shares.
    """
    if len(fractions) != len(SPLITS) or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(
            f"class_fractions are {list(fractions)}: give three positive shares of the classes to "
            "train, validate and test on that add up to 1"
        )
