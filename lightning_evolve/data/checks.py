"""Refusals that several constructors share."""

from __future__ import annotations

from lightning_evolve.errors import UsageError


def at_least(least: int, **values: int | None) -> None:
    """Refuse numbers that are too small.

    Args:
        least: the smallest number that makes sense.
        values: numbers by the name of their argument; None is not looked at.

    Raises:
        UsageError: naming the first argument that is below.

    >>> at_least(1, ways=5, shots=1, rows=None)
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}: give {least} or more")
