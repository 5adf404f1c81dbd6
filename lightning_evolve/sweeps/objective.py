"""The objective of a run: what it logged of the sweep's metric, and the best of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Goal = Literal["minimize", "maximize"]


def logged(run: Path, name: str) -> list[float] | None:
    """Returns a metric at each of its loggings so far.

    Args:
        run: directory of a run, with a ``metrics.csv`` once something is logged.
        name: of the metric, such as ``val/reward``.

    Returns:
        Its values in order, not-a-number among them; None if there is no such column (yet).
    """
    try:
        text = (run / "metrics.csv").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    # The last line may be half written.
    reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    if name not in (reader.fieldnames or ()):
        return None
    return [float(row[name]) for row in reader if row[name]]


def best(values: Sequence[float], goal: Goal) -> float | None:
    """Returns the best of the finite values, None if there is none.

    Example:
        >>> best([0.5, float("nan"), 0.7, float("inf")], "maximize")
        0.7
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    return min(finite) if goal == "minimize" else max(finite)


def over_seeds(history: Sequence[Sequence[float]], goal: Goal) -> float | None:
    """Returns the mean of each seed's best value.

    Args:
        history: by seed, the values so far; seeds without any are left out.
        goal: what is better.

    Returns:
        The mean; None without any value, or where a seed has never reached a finite one.

    Example:
        >>> over_seeds([[1.0, 3.0], [5.0], []], "maximize")
        4.0
    """
    bests = [best(values, goal) for values in history if values]
    known = [value for value in bests if value is not None]
    return sum(known) / len(known) if len(known) == len(bests) > 0 else None
