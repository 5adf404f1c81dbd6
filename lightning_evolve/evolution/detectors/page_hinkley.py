"""The Page-Hinkley test: a cumulative sum that leans downwards until the mean rises.

    m_t = sum over i <= t of (x_i - mean_i - delta),
    alarm when m_t - min over i <= t of m_i > lambda,

with mean_i the mean of x_1 to x_i. ``delta`` is best half the rise that matters; ``lambda`` trades
delay for false alarms: after a rise r the alarm comes about lambda / (r - delta) values later.

Sources: Page, Continuous Inspection Schemes, Biometrika 1954; Gama et al., A Survey on Concept
Drift Adaptation, ACM Computing Surveys 2014.
"""

from __future__ import annotations

from typing_extensions import override

from lightning_evolve.evolution.detectors.base import Detector, positive

WARM_UP = 30  # values before the first alarm: the mean of fewer says little


class PageHinkley(Detector):
    """Alarms when the sum of what exceeds the mean has risen by more than a threshold.

    Args:
        delta: how far above the mean a value may stay without counting.
        threshold: lambda, in values' units; more is slower and surer.

    Raises:
        UsageError: for one that is not above 0.

    Example:
        >>> detector = PageHinkley()
        >>> stream = [0, 0, 0, 0, 1] * 100 + [1, 1, 0] * 100
        >>> next(i for i, error in enumerate(stream) if detector.update(error))
        555
    """

    STATE = ("count", "mean", "sum", "least")

    def __init__(self, delta: float = 0.02, threshold: float = 25.0) -> None:
        positive(delta=delta, threshold=threshold)
        self.delta, self.threshold = delta, threshold
        self.reset()

    @override
    def reset(self) -> None:
        self.count, self.mean = 0, 0.0
        self.sum = self.least = 0.0

    @override
    def _take(self, value: float) -> bool:
        self.count += 1
        self.mean += (value - self.mean) / self.count
        self.sum += value - self.mean - self.delta
        self.least = min(self.least, self.sum)
        return self.count >= WARM_UP and self.sum - self.least > self.threshold
