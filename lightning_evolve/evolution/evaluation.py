"""System 5, evaluation: a challenger beside the champion, on the very same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torchmetrics.functional.classification import multiclass_calibration_error

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Truths = NDArray[np.bool_]

BINS = 15
"""Of the calibration error (Guo et al. 2017)."""

FLOOR = 1e-6
"""Least probability in a loss: a model gives none to a class that it does not know."""

# Numbers of a block of resamples, which bounds the memory of a bootstrap at 32 MB.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Cost:
    """What a model costs; the caller measures it.

    Args:
        train_seconds: CPU seconds of its training.
        parameters: how many it has.
        microseconds: to classify a text.
    """

    train_seconds: float
    parameters: int
    microseconds: float


@dataclass(frozen=True)
class Scores:
    """How good one model is.

    Args:
        accuracy: share of the weight of the rows that it gets right.
        macro_f1: mean F1 over the classes that have rows.
        loss: negative log-likelihood of a row, in nats, of probabilities of at least ``FLOOR``.
        brier: half the Brier score (Brier 1950): the error rate of one that is always sure, and
            less the more doubt it has where it is wrong.
        calibration_error: mean distance of confidence and accuracy over bins of confidence; each
            row counts alike.
        cost: what it costs, where it was measured.
    """

    accuracy: float
    macro_f1: float
    loss: float
    brier: float
    calibration_error: float
    cost: Cost | None = None


@dataclass(frozen=True)
class Difference:
    """Challenger minus champion, with the two-sided interval of the paired bootstrap.

    Args:
        mean: on the rows themselves.
        low: lower end.
        high: upper end.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassScores:
    """Both models on the rows of one class.

    Args:
        rows: how many there are.
        champion: its recall.
        challenger: its recall.
        gained: rows that only the challenger gets right.
        lost: rows that only the champion gets right.
    """

    rows: int
    champion: float
    challenger: float
    gained: int
    lost: int

    @property
    def difference(self) -> float:
        """Recall of the challenger minus that of the champion."""
        return self.challenger - self.champion


@dataclass(frozen=True)
class Comparison:
    """A challenger beside the champion on one set of rows.

    Args:
        rows: how many.
        champion: scores of the model in use.
        challenger: scores of the candidate.
        accuracy: challenger minus champion, and so on.
        macro_f1: of the classes that a resample has.
        loss: below zero where the challenger is better.
        brier: likewise.
        lower: one-sided lower bound of what the challenger gains in ``brier``.
        chance: of such a gain, or a greater one, had each row's gain its sign by a coin (Fisher
            1935). A bootstrap alone takes three rows gained and none lost for sure.
        confidence: of the bound and of the intervals.
        classes: by name, of the classes that have rows.
    """

    rows: int
    champion: Scores
    challenger: Scores
    accuracy: Difference
    macro_f1: Difference
    loss: Difference
    brier: Difference
    lower: float
    chance: float
    confidence: float
    classes: dict[str, ClassScores]

    @property
    def gained(self) -> int:
        """Rows that only the challenger gets right."""
        return sum(found.gained for found in self.classes.values())

    @property
    def lost(self) -> int:
        """Rows that only the champion gets right."""
        return sum(found.lost for found in self.classes.values())

    def to_json(self) -> dict[str, Any]:
        """Returns numbers, strings and dictionaries alone."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Comparison:
        """Returns what :meth:`to_json` was called on.

        Args:
            saved: what it returned, perhaps by way of a file.
        """
        models = {}
        for model in ("champion", "challenger"):
            cost = saved[model]["cost"]
            models[model] = Scores(**{**saved[model], "cost": cost and Cost(**cost)})
        differences = {n: Difference(**saved[n]) for n in ("accuracy", "macro_f1", "loss", "brier")}
        classes = {name: ClassScores(**found) for name, found in saved["classes"].items()}
        return cls(**{**saved, **models, **differences, "classes": classes})


def compare(
    champion: Floats,
    challenger: Floats,
    labels: Integers,
    classes: Sequence[str],
    *,
    weights: Floats | None = None,
    costs: tuple[Cost, Cost] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    r"""Scores two models on the same rows, and their difference by a paired bootstrap.

    A resample draws rows with replacement, the same ones for both models (Efron & Tibshirani
    1993), so that what makes a row hard for both does not widen the interval of

    .. math::
        \Delta = \frac{\sum_i w_i (h_i - c_i)}{\sum_i w_i}, \qquad
        h_i, c_i = [\text{challenger, champion right on row } i].

    Args:
        champion: its calibrated probabilities, ``[rows, classes]``; zero in the column of a class
            that it does not know.
        challenger: those of the candidate, over the same classes.
        labels: ``[rows]``, positions in ``classes``.
        classes: names.
        weights: ``[rows]``, of rows from sources that count more; 1 each where left out. They are
            in everything but the calibration error and the counts of rows.
        costs: of the champion and of the challenger.
        confidence: of the intervals, two-sided, and of the lower bound, one-sided.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The comparison.

    Example:
        >>> sure, unsure = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.9, 0.1], [0.6, 0.4]])
        >>> found = compare(unsure, sure, np.array([0, 1]), ["yes", "no"])
        >>> found.accuracy.mean, found.classes["no"].gained, found.lost
        (0.5, 1, 0)
    """
    rows = len(labels)
    assert rows, "nothing to compare on"
    assert champion.shape == challenger.shape == (rows, len(classes))
    assert set(np.unique(labels)) <= set(range(len(classes)))
    weight = np.ones(rows) if weights is None else np.asarray(weights, dtype=float)
    assert weight.shape == (rows,)
    assert (weight > 0).all()
    old, new = (_Rows(p, labels, weight) for p in (champion, challenger))
    points = [model.statistics(np.ones((1, rows))) for model in (old, new)]
    blocks = [new.statistics(n) - old.statistics(n) for n in _resamples(rows, resamples, seed)]
    drawn = np.concatenate(blocks, axis=1)
    tail = (1 - confidence) / 2
    accuracy, macro_f1, loss, brier = (
        Difference(*(float(x) for x in (b - a, *np.quantile(draws, [tail, 1 - tail]))))
        for a, b, draws in zip(points[0][:, 0], points[1][:, 0], drawn, strict=True)
    )
    scores = []
    for point, p, cost in zip(points, (champion, challenger), costs or (None, None), strict=True):
        right, f1, nats, half = map(float, point[:, 0])
        scores.append(Scores(right, f1, nats, half, calibration_error(p, labels), cost))
    return Comparison(
        rows=rows,
        champion=scores[0],
        challenger=scores[1],
        accuracy=accuracy,
        macro_f1=macro_f1,
        loss=loss,
        brier=brier,
        lower=-float(np.quantile(drawn[3], confidence)),
        chance=sign_flips((old.brier - new.brier) * weight, resamples, seed),
        confidence=confidence,
        classes={
            classes[c]: _of_class(labels == c, old.right, new.right, weight)
            for c in np.unique(labels)
        },
    )


def calibration_error(probabilities: Floats, labels: Integers) -> float:
    r"""Expected calibration error (Naeini et al. 2015).

    .. math:: \sum_b \frac{n_b}{n} \, |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    Args:
        probabilities: ``[rows, classes]``.
        labels: ``[rows]``.

    Example:
        >>> round(calibration_error(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])), 3)
        0.3
    """
    # A probability that rounding has put above 1 would be taken for a logit.
    p = torch.as_tensor(np.clip(probabilities, 0, 1), dtype=torch.float64)
    found = multiclass_calibration_error(
        p, torch.as_tensor(labels, dtype=torch.int64), p.shape[1], BINS, validate_args=False
    )
    return float(found)


def sign_flips(gains: Floats, draws: int = 2000, seed: int = 0) -> float:
    """Chance of so great a sum, or a greater one, were each sign decided by a coin (Fisher 1935).

    Args:
        gains: ``[rows]``; those of zero are no evidence.
        draws: of all signs.
        seed: of the draws.

    Example:
        >>> abs(sign_flips(np.array([1.0, 1.0, 1.0, 0.0]), 4000) - 1 / 8) < 0.02
        True
    """
    gains = gains[gains != 0]
    source = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(1, len(gains)))
    total, reached = gains.sum(), 1
    for first in range(0, draws, block):
        size = min(block, draws - first)
        signs = source.integers(2, size=(size, len(gains)), dtype=np.int8) * 2.0 - 1
        reached += int((signs @ gains >= total - 1e-9).sum())
    return reached / (draws + 1)


class _Rows:
    """What statistics of resampled rows are sums of.

    Args:
        probabilities: of one model, ``[rows, classes]``.
        labels: ``[rows]``.
        weight: ``[rows]``.
    """

    def __init__(self, probabilities: Floats, labels: Integers, weight: Floats) -> None:
        rows, classes = probabilities.shape
        predicted = probabilities.argmax(axis=1)
        self.right = predicted == labels
        of_label = probabilities[np.arange(rows), labels]
        self.brier = ((probabilities**2).sum(axis=1) + 1 - 2 * of_label) / 2
        loss = -np.log(np.clip(of_label, FLOOR, 1))
        ones = np.ones(rows)
        self.sums = np.stack([ones, self.right, loss, self.brier], axis=1) * weight[:, None]
        places = np.arange(rows)
        self.by_label, self.by_prediction, self.hits = (
            sparse.csr_array((values, (places, columns)), shape=(rows, classes))
            for values, columns in (
                (weight, labels),
                (weight, predicted),
                (weight * self.right, labels),
            )
        )

    def statistics(self, counts: Floats) -> Floats:
        """Accuracy, macro F1, loss and half the Brier score of resamples.

        Args:
            counts: how often each has each row, ``[resamples, rows]``.

        Returns:
            ``[4, resamples]``.
        """
        total, right, loss, brier = (counts @ self.sums).T
        support, predicted, hits = (
            counts @ m for m in (self.by_label, self.by_prediction, self.hits)
        )
        there = support > 0
        f1 = np.where(there, 2 * hits / np.where(there, support + predicted, 1), 0)
        macro_f1 = f1.sum(axis=1) / there.sum(axis=1)
        return np.stack([right / total, macro_f1, loss / total, brier / total])


def _resamples(rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each resample has each row, a block of resamples at a time."""
    source = np.random.default_rng(seed)
    block = max(1, _BLOCK // rows)
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        draws = source.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        counts = np.bincount(draws.ravel(), minlength=size * rows)
        yield counts.reshape(size, rows).astype(float)


def _of_class(chosen: Truths, old: Truths, new: Truths, weight: Floats) -> ClassScores:
    old, new, weight = old[chosen], new[chosen], weight[chosen]
    return ClassScores(
        rows=len(weight),
        champion=float(np.average(old, weights=weight)),
        challenger=float(np.average(new, weights=weight)),
        gained=int((new & ~old).sum()),
        lost=int((old & ~new).sum()),
    )
