"""CBPE, confidence-based performance estimation: an accuracy without labels.

Where confidences c_1 to c_n are calibrated, a prediction of confidence c is right with probability
c, and the number of right ones is Poisson-binomial:

    accuracy = mean of c_i,   variance = sum of c_i (1 - c_i) / n^2.

It sees a fall that shows in the confidence, as where classes overlap more than they did. It is
blind where a model is as sure as before and wrong, as where a class has changed its meaning: that
takes labels.

Source: Kivimaki, Bialek, Nurminen and Kuberski, Confidence-based Estimators for Predictive
Performance in Model Monitoring, 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from lightning_evolve.evolution.detectors.windows import Shift, most


class Estimate(NamedTuple):
    """An estimated accuracy with the 95% interval of what labels would show."""

    accuracy: float
    low: float
    high: float


def estimated_accuracy(confidences: Sequence[float]) -> Estimate:
    """Accuracy of predictions whose labels nobody knows.

    Args:
        confidences: calibrated probability of each predicted class, one or more.

    Returns:
        The estimate with its interval.

    Example:
        >>> estimate = estimated_accuracy([0.9] * 50 + [0.7] * 50)
        >>> [round(number, 3) for number in estimate]
        [0.8, 0.724, 0.876]
    """
    c = np.asarray(confidences, dtype=float)
    half = float(stats.norm.ppf(0.975) * np.sqrt((c * (1 - c)).sum()) / len(c))
    accuracy = float(c.mean())
    return Estimate(accuracy, max(0.0, accuracy - half), min(1.0, accuracy + half))


def compare(reference: Sequence[Any], window: Sequence[Any]) -> Shift:
    """Whether the estimated accuracy has fallen: Welch's test of the confidences, one-sided.

    Estimate stands against estimate, so that confidences which are a little too high or too low
    everywhere raise no alarm.

    Args:
        reference: rows of confidence and name of the predicted class.
        window: rows of the same kind.

    Returns:
        The shift of the estimated accuracy; what moved are the predicted classes that brought most
        of the expected errors.
    """
    old, new = ([row[0] for row in rows] for rows in (reference, window))
    before, after = estimated_accuracy(old), estimated_accuracy(new)
    if len(old) < 2 or len(new) < 2 or np.ptp(old) == np.ptp(new) == 0:
        p = float(after.accuracy >= before.accuracy)
    else:
        p = float(stats.ttest_ind(new, old, equal_var=False, alternative="less").pvalue)
    errors: dict[str, float] = {}
    for rows, sign in ((reference, -1 / len(old)), (window, 1 / len(new))):
        for confidence, name in rows:
            errors[name] = errors.get(name, 0.0) + sign * (1 - confidence)
    moved = most(list(errors), list(errors.values()))
    where = f"; most of it where {moved[0]!r} is predicted" if moved else ""
    return Shift(
        p,
        before.accuracy,
        after.accuracy,
        moved,
        f"estimated accuracy fell from {before.accuracy:.2f} to {after.accuracy:.2f} "
        f"(CBPE, 95% interval {after.low:.2f} to {after.high:.2f}){where}",
    )
