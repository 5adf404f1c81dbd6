"""Meta-learning's split: the classes of validation and test never occur in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from lightning_evolve.data.arranged import Arranged
from lightning_evolve.data.cleaning import clean
from lightning_evolve.data.rows import Rows, concatenate
from lightning_evolve.data.splits import SPLITS, split_classes
from lightning_evolve.errors import UsageError


def hold_out_classes(
    source: dict[str, Rows],
    ways: int,
    fewest: int,
    fractions: Sequence[float],
    seed: int,
    copies: int = 1,
) -> Arranged:
    """Pool a source's rows, clean them, and split them by class.

    A source whose own three splits have no class in common keeps them. As rows are cleaned
    together, no text is in two splits either.

    Args:
        source: rows by split.
        ways: classes of a task; each split needs as many.
        fewest: rows that a class needs; those with fewer are dropped.
        fractions: shares of the classes of the three splits.
        seed: what decides which class goes where.
        copies: classes that each of them will become, such as 4 of one that is turned.

    Raises:
        UsageError: too few classes, or too few with enough rows.
    """
    names = [name for name in SPLITS if name in source]
    rows, dropped = clean(concatenate([source[name] for name in names]))
    notes = [str(dropped)] if dropped else []

    counts = Counter(rows.labels)
    large = {label for label, count in counts.items() if count >= fewest}
    if copies * len(large) < ways:
        most = max(counts.values(), default=0)
        raise UsageError(
            f"{copies * len(large)} of {copies * len(counts)} classes have the {fewest} rows that "
            f"a task needs of each of its {ways} classes (the largest has {most}): lower ways or "
            "the rows of a task, or name a source with more"
        )
    if len(large) < len(counts):
        notes.append(f"{len(counts) - len(large)} classes with fewer than {fewest} rows dropped")
    rows = rows.select(number for number, label in enumerate(rows.labels) if label in large)

    own = {name: set(source[name].labels) for name in names}
    apart = len(own) == len(SPLITS) and sum(map(len, own.values())) == len(set.union(*own.values()))
    if apart:
        # In an order that does not tell who has which class: rows that are shared out in several
        # ways, as benchmarks do, are encoded once.
        keys = rows.keys
        rows = rows.select(sorted(range(len(rows)), key=keys.__getitem__))

    class_names = tuple(sorted(large))
    of_class = {name: number for number, name in enumerate(class_names)}
    labels = torch.tensor([of_class[label] for label in rows.labels])
    if apart:
        classes = {name: sorted(of_class[label] for label in own[name] & large) for name in own}
    else:
        classes = split_classes(range(len(class_names)), fractions, seed)
    for name, members in classes.items():
        if copies * len(members) < ways:
            raise UsageError(
                f"the {name} split has {copies * len(members)} of {copies * len(class_names)} "
                f"classes, fewer than ways={ways}: lower ways, change class_fractions, or name a "
                "source with more"
            )
    splits = {
        name: torch.isin(labels, torch.tensor(members)).nonzero().squeeze(1)
        for name, members in classes.items()
    }
    return Arranged(rows, class_names, splits, notes)
