r"""ADWIN, adaptive windowing, one-sided.

A window of the latest W values grows for as long as no split of it into an older part 0 and a newer
part 1 has means that differ by more than chance allows:

    |mean_1 - mean_0| > sqrt(2/m variance ln(2/delta')) + 2/(3m) ln(2/delta'),
    1/m = 1/n_0 + 1/n_1,   delta' = delta / ln W.

A newer part with a higher mean is an alarm. One with a lower mean only drops the oldest values, so
that the next rise is measured from the new level.

An exponential histogram holds the window in buckets of 1, 2, 4, ... values, ``BUCKETS`` of each
size at most, so that W values take O(log W) numbers; only splits between buckets are looked at.

Source: Bifet and Gavalda, Learning from Time-Changing Data with Adaptive Windowing, SDM 2007.
"""

from __future__ import annotations

import math

import numpy as np
from typing_extensions import override

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.detectors.base import Detector

BUCKETS = 5  # of one size, M in the paper
CLOCK = 8  # values from one look at the splits to the next: a look costs a hundred times a value


class ADWIN(Detector):
    """Alarms when the newer part of a window of adaptive length has a higher mean.

    Args:
        delta: the confidence of the bound; smaller is slower and surer.

    Raises:
        UsageError: for a ``delta`` that is no probability.

    Example:
        >>> detector = ADWIN()
        >>> stream = [0, 0, 0, 0, 1] * 100 + [1, 1, 0] * 100
        >>> next(i for i, error in enumerate(stream) if detector.update(error))
        543
    """

    STATE = ("count", "histogram")

    def __init__(self, delta: float = 0.002) -> None:
        if not 0 < delta < 1:
            raise UsageError(f"delta is {delta}: give a probability between 0 and 1")
        self.delta = delta
        self.reset()

    @override
    def reset(self) -> None:
        self.count = 0
        # By size 2**i: buckets from old to new, each the sum and the sum of squares of its values.
        self.histogram: list[list[list[float]]] = [[]]

    @override
    def _take(self, value: float) -> bool:
        self._add(value)
        self.count += 1
        if self.count % CLOCK:
            return False
        while rise := self._cut():
            if rise > 0:
                return True
            self._drop_oldest()
        return False

    def _add(self, value: float) -> None:
        """A bucket of one value; where there are too many of a size, the oldest two merge."""
        self.histogram[0].append([value, value * value])
        for size, buckets in enumerate(self.histogram):
            if len(buckets) <= BUCKETS:
                break
            older, newer = buckets.pop(0), buckets.pop(0)
            if size + 1 == len(self.histogram):
                self.histogram.append([])
            self.histogram[size + 1].append([older[0] + newer[0], older[1] + newer[1]])

    def _drop_oldest(self) -> None:
        self.histogram[-1].pop(0)
        while not self.histogram[-1] and len(self.histogram) > 1:
            self.histogram.pop()

    def _cut(self) -> float:
        """How much higher the newer mean is at the oldest split that is no chance, or 0."""
        sizes = [2**i for i, row in enumerate(self.histogram) for _ in row]
        sums = [bucket for row in self.histogram for bucket in reversed(row)]
        # From new to old, so that part 1 grows with each bucket.
        n, total = np.cumsum(sizes), np.cumsum(sums, axis=0)
        width, (whole, squares) = int(n[-1]), total[-1]
        if len(n) < 2:
            return 0.0
        n_1, sum_1 = n[:-1], total[:-1, 0]
        n_0, sum_0 = width - n_1, whole - sum_1
        variance = max(0.0, squares / width - (whole / width) ** 2)
        inverse_m = 1 / n_0 + 1 / n_1
        log = math.log(2 * math.log(width) / self.delta)
        bound = np.sqrt(2 * inverse_m * variance * log) + 2 / 3 * inverse_m * log
        rise = sum_1 / n_1 - sum_0 / n_0
        cuts = np.flatnonzero(np.abs(rise) > bound)
        return float(rise[cuts[-1]]) if len(cuts) else 0.0
