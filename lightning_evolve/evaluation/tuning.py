"""Tuning a rate on a logarithmic grid, as hard for a rival as for ourselves."""

from __future__ import annotations

import math
from collections.abc import Callable

from lightning_evolve.errors import UsageError

_RATIO = math.sqrt(10)
_EXTENSIONS = 6


def tune(loss: Callable[[float], float], centre: float, points: int = 7) -> float:
    """Finds the rate of lowest loss among points at ratios of the root of 10.

    Where the best point lies on the edge of the grid, the grid grows there: a rival's best rate
    must not be one that we did not care to try.

    Args:
        loss: what a rate leads to; not-a-number and infinity count as the worst.
        centre: middle of the grid.
        points: size of the grid before it grows, odd and at least 7.

    Returns:
        The rate with the lowest loss.

    Raises:
        UsageError: if there are fewer than 7 points.

    Example:
        >>> round(tune(lambda rate: (math.log10(rate) - 2) ** 2, centre=0.1))
        100
    """
    if points < 7:
        raise UsageError(f"points is {points}; tune on at least 7")
    half = points // 2
    exponents = list(range(-half, half + 1))
    losses: dict[int, float] = {}

    def measure(exponent: int) -> float:
        value = loss(centre * _RATIO**exponent)
        return value if math.isfinite(value) else math.inf

    for exponent in exponents:
        losses[exponent] = measure(exponent)
    for _ in range(_EXTENSIONS):
        best = min(losses, key=lambda e: losses[e])
        if best not in (min(losses), max(losses)):
            break
        beyond = best - 1 if best == min(losses) else best + 1
        losses[beyond] = measure(beyond)
    best = min(losses, key=lambda e: losses[e])
    return centre * _RATIO**best
