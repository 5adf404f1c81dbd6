"""DDM, the drift detection method: the error rate against the best that it has been.

    s_t = sqrt(p_t (1 - p_t) / t),   alarm when p_t + s_t > p_min + 3 s_min

with p_t the error rate of the first t values, and p_min and s_min those at which p_t + s_t was
least. No errors at all have no spread, and the first error would be an alarm; so a least value
counts only once there has been an error.

Source: Gama, Medas, Castillo and Rodrigues, Learning with Drift Detection, SBIA 2004.
"""

from __future__ import annotations

import math

from typing_extensions import override

from lightning_evolve.evolution.detectors.base import Detector, positive

WARM_UP = 30  # values before the first alarm, as in the paper


class DDM(Detector):
    """Alarms when the error rate is well above its least value so far.

    It is made for 0 and 1, is quick on an abrupt rise and has more false alarms than the others.

    Args:
        deviations: of p_min, by which the error rate may exceed it; 3 in the paper.

    Raises:
        UsageError: for a number that is not above 0.

    Example:
        >>> detector = DDM()
        >>> stream = [0, 0, 0, 0, 1] * 100 + [1, 1, 0] * 100
        >>> next(i for i, error in enumerate(stream) if detector.update(error))
        537
    """

    STATE = ("count", "rate", "least_rate", "least_spread")

    def __init__(self, deviations: float = 3.0) -> None:
        positive(deviations=deviations)
        self.deviations = deviations
        self.reset()

    @override
    def reset(self) -> None:
        self.count, self.rate = 0, 0.0
        self.least_rate = self.least_spread = 1.0  # above all that a stream can give

    @override
    def _take(self, value: float) -> bool:
        self.count += 1
        self.rate += (value - self.rate) / self.count
        if self.count <= WARM_UP or not self.rate:
            return False
        spread = math.sqrt(self.rate * (1 - self.rate) / self.count)
        if self.rate + spread <= self.least_rate + self.least_spread:
            self.least_rate, self.least_spread = self.rate, spread
        return self.rate + spread > self.least_rate + self.deviations * self.least_spread
