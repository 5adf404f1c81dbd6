"""Means with 95% intervals, and how soon a method gets to a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Interval = dict[str, float | None]
"""``{"mean", "low", "high"}``; None where there is no number, such as a loss never reached."""

TOLERANCE = 1e-3
"""How far above a target loss counts as there, relative to it: the third digit of a loss is noise,
and a rule that differs from the reference by less should not be called "never"."""

NOTHING: Interval = {"mean": None, "low": None, "high": None}


def interval(values: ArrayLike) -> Interval:
    """Mean of independent values with Student's 95% interval.

    Args:
        values: one number a task or a seed; with a single one the interval is the number itself.

    Returns:
        The interval; without numbers where one of the values is not finite, as where a rule has
        diverged on a task.

    Example:
        >>> {k: round(v, 3) for k, v in interval([0.4, 0.5, 0.6]).items()}
        {'mean': 0.5, 'low': 0.252, 'high': 0.748}
    """
    numbers = np.asarray(values, dtype=float)
    if not np.isfinite(numbers).all():
        return dict(NOTHING)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return {"mean": mean, "low": mean, "high": mean}
    half = float(stats.t.ppf(0.975, len(numbers) - 1) * stats.sem(numbers))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def steps_to_target(
    losses: Mapping[str, np.ndarray],
    steps: Sequence[int],
    reference: str = "adam",
    resamples: int = 1000,
) -> dict[str, Interval]:
    """First step at which each method's mean loss is down to the reference's best mean loss.

    The interval is a bootstrap over tasks that redraws the reference's best loss with the same
    tasks, so that what all methods share does not widen it.

    Args:
        losses: by method, query loss of shape ``[tasks, measurements]``.
        steps: inner steps taken at each measurement.
        reference: whose best mean loss is the target.
        resamples: bootstrap samples.

    Returns:
        By method the step with its interval; None where the loss is never reached.

    Example:
        >>> slow, fast = np.array([[3.0, 2.0, 1.0]]), np.array([[3.0, 1.0, 1.0]])
        >>> got = steps_to_target({"adam": slow, "evolved": fast}, [0, 10, 20])
        >>> got["adam"]["mean"], got["evolved"]["mean"]
        (20.0, 10.0)
    """
    result = {}
    for name, first in first_reached(losses, steps, reference, resamples).items():
        low, high = np.quantile(first[1:], [0.025, 0.975], method="nearest")
        result[name] = {
            key: float(value) if math.isfinite(value) else None
            for key, value in (("mean", first[0]), ("low", low), ("high", high))
        }
    return result


def first_reached(
    losses: Mapping[str, np.ndarray],
    steps: Sequence[int],
    reference: str = "adam",
    resamples: int = 1000,
) -> dict[str, np.ndarray]:
    """The same of the tasks themselves and of each resample of them.

    Args:
        losses: as of :func:`steps_to_target`.
        steps: as of :func:`steps_to_target`.
        reference: as of :func:`steps_to_target`.
        resamples: as of :func:`steps_to_target`.

    Returns:
        By method the steps, ``[1 + resamples]``; infinity where the loss is never reached.
    """
    tasks = len(losses[reference])
    draws = np.random.default_rng(0).integers(tasks, size=(resamples, tasks))
    weights = np.stack([np.bincount(draw, minlength=tasks) for draw in draws]) / tasks
    weights = np.concatenate([np.full((1, tasks), 1 / tasks), weights])
    with np.errstate(invalid="ignore", over="ignore"):
        curves = {name: weights @ loss for name, loss in losses.items()}
    target = np.nanmin(curves[reference], axis=1, keepdims=True)
    result = {}
    for name, curve in curves.items():
        reached = curve <= target * (1 + TOLERANCE)
        first = np.asarray(steps)[reached.argmax(axis=1)]
        result[name] = np.where(reached.any(axis=1), first, np.inf)
    return result
