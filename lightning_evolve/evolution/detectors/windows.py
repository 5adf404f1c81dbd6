r"""Each full window against a reference, with a level that all windows together keep.

Window k after a reference is an alarm where

    p < alpha / (k (k + 1)),   sum over k of 1 / (k (k + 1)) = 1,

so that on rows that do not change the probability of ever raising an alarm is alpha at most,
however many windows there are and whatever they have in common (alpha spending, the union bound).
The level of window k falls as 1/k^2, but the p-value of a real change falls exponentially with the
rows, so that the delay grows little.

Source: Foster and Stine, Alpha-Investing, Journal of the Royal Statistical Society B 2008.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_evolve.errors import UsageError


class Shift(NamedTuple):
    """What a window has that its reference has not.

    Args:
        p: probability of a difference like this, or a larger one, if nothing had changed.
        before: the number that moved most, in the reference.
        after: the same in the window.
        moved: names of what moved most, most first.
        message: a sentence that says so.
    """

    p: float
    before: float
    after: float
    moved: tuple[str, ...]
    message: str


Compare = Callable[[Sequence[Any], Sequence[Any]], Shift]
"""From the rows of the reference and those of a window to how they differ."""


class Windows:
    """Windows that follow one another, none with rows of another.

    Without a reference the next full window becomes it, and so after an alarm: what has been
    reported is the new normal, and the window in which the change fell is half old.

    Args:
        method: name of the comparison.
        compare: how a window differs from the reference.
        size: rows of a window, and the most that are kept of a reference: windows of one size are
            what the approximations of the p-values are best for.
        alpha: probability of a false alarm for each reference, over all its windows.
    """

    def __init__(self, method: str, compare: Compare, size: int, alpha: float) -> None:
        self.method, self.compare, self.size, self.alpha = method, compare, size, alpha
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self.reference: list[Any] | None = None
        self.current: list[Any] = []
        self.looks = 0

    def set_reference(self, rows: Sequence[Any]) -> None:
        """Compare with these rows from now on, or with ``size`` of them, evenly spread."""
        self.reset()
        if len(rows):
            kept = np.linspace(0, len(rows) - 1, min(len(rows), self.size)).astype(int)
            self.reference = [rows[row] for row in kept]

    def update(self, rows: Sequence[Any]) -> list[Shift]:
        """Take rows in use, in their order.

        Args:
            rows: what ``compare`` takes; JSON can write them.

        Returns:
            The alarms of the windows that have become full.
        """
        self.current.extend(rows)
        alarms = []
        whole = len(self.current) // self.size * self.size
        windows = [self.current[i : i + self.size] for i in range(0, whole, self.size)]
        self.current = self.current[whole:]
        for window in windows:
            if self.reference is None:
                self.reference, self.looks = window, 0
                continue
            self.looks += 1
            shift = self.compare(self.reference, window)
            if shift.p < self.alpha / (self.looks * (self.looks + 1)):
                alarms.append(shift)
                self.reference = None
        return alarms

    def state_dict(self) -> dict[str, Any]:
        """All rows that are kept, and how many windows have been compared."""
        reference = None if self.reference is None else list(self.reference)
        return {"reference": reference, "current": list(self.current), "looks": self.looks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            UsageError: if something is missing from it.
        """
        if set(state) != {"reference", "current", "looks"}:
            raise UsageError(
                f"the state of windows has {', '.join(state) or 'nothing'}: "
                "give reference, current and looks"
            )
        reference = state["reference"]
        self.reference = None if reference is None else list(reference)
        self.current, self.looks = list(state["current"]), state["looks"]


def most(names: Sequence[str], weights: Any, count: int = 3) -> tuple[str, ...]:
    """Names of the largest weights, largest first; none whose weight is not above 0.

    >>> most(["sport", "world", "science"], [0.1, -0.3, 0.2])
    ('science', 'sport')
    """
    values = np.asarray(weights, dtype=float)
    order = np.argsort(-values, kind="stable")[:count]
    return tuple(names[place] for place in order if values[place] > 0)
