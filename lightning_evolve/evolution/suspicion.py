"""Whether the labels of a batch from one source are plausible, before they may teach anything.

A poisoned batch poisons its own held-out share too, on which a challenger that has learned the
poison beats the champion. So no score on the batch can clear it; what can is what was known before:
the champion's confidence, and rows that are trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist

from lightning_evolve.evolution.evaluation import Floats, Integers, Truths

FEWEST = 20
"""Rows of a batch, and sure rows among them, below which nothing can be told."""

SURE = 0.7
"""Calibrated probability from which on the champion counts as sure of a row."""

WRONG = 0.3
"""Share of wrong labels that is too many. Drift makes a champion that is sure wrong as well, yet
seldom that often."""

LEVEL = 0.02
"""Of the test of contradiction, at its limit: a batch without wrong labels is far from it."""

NEIGHBOURS = 5
"""Rows that a row's label is compared with."""

AGREEMENT = 0.3
"""Least agreement of neighbours, relative to that of trusted rows. Of labels with a share w wrong
at random, about (1 - w)^2 is left: 0.16 at 60%, and half of it or more on the drifts tried."""

TELLING = 0.3
"""Agreement of trusted rows below which the features say too little to be used."""

ONE_CLASS = 0.95
"""Share of a batch's labels from which on it counts as being of one class."""

SPREAD = 0.35
ORDINARY = 1.5
"""Below such a share of the most frequent prediction, and below so many times what it is in as many
trusted rows, a batch holds several classes for the champion. A class that is new to it looks like
one or two that it knows; all its classes under one label look like ordinary rows."""

# Rows that neighbours are looked for among, and subsets of trusted rows: milliseconds each.
_ROWS, _SUBSETS = 1000, 10


@dataclass(frozen=True)
class Judged:
    """Rows with their labels, as the champion sees them.

    Args:
        probabilities: its calibrated probabilities, ``[rows, classes]``; zero in the column of a
            class that it does not know.
        labels: ``[rows]``, positions among the classes.
        features: ``[rows, d]``, close for texts that mean the same, such as its last hidden layer.
    """

    probabilities: Floats
    labels: Integers
    features: Floats


@dataclass(frozen=True)
class Suspicion:
    """What is wrong with the labels of a batch.

    Args:
        suspect: whether it should be held back.
        reasons: why, a sentence each; empty where it should not be.
        figures: what was measured, by name.
    """

    suspect: bool
    reasons: tuple[str, ...]
    figures: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Returns numbers, strings, lists and dictionaries alone."""
        return {**asdict(self), "reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Suspicion:
        """Returns what :meth:`to_json` was called on.

        Args:
            saved: what it returned, perhaps by way of a file.
        """
        return cls(**{**saved, "reasons": tuple(saved["reasons"])})


def suspect(batch: Judged, trusted: Judged, classes: Sequence[str], *, seed: int = 0) -> Suspicion:
    """Tests the labels of a batch from one source, its held-out rows included, in three ways.

    *Contradiction*: of the rows that the champion is sure of, too many are labelled otherwise. See
    :func:`contradicted`. *Agreement*: rows that look alike have labels that do not, far less than
    among trusted rows; that needs no champion that is sure. See :func:`agreement`. *Collapse*:
    labels of one class on rows in which the champion sees several.

    A drift that changes what more than about a third of the rows that the champion was sure of are
    called looks the same as poison; only trust in the source tells them apart, and the caller lets
    trusted sources pass. Of a batch of fewer than ``FEWEST`` rows nothing can be told: the caller
    collects a source's rows until there are that many.

    Args:
        batch: all of its rows.
        trusted: rows whose labels are taken to be right, of the classes that the champion knows.
        classes: names.
        seed: of the subsets of rows that neighbours are looked for among.

    Returns:
        The finding.
    """
    rows = len(batch.labels)
    figures: dict[str, float] = {"rows": rows}
    if rows < FEWEST:
        return Suspicion(False, (), figures)
    known: Truths = np.any(batch.probabilities > 0, axis=0)
    reasons = []

    sure, against = _sure(batch, known)
    figures |= {"sure": sure.sum(), "contradicted": against.sum()}
    if sure.sum() >= FEWEST:
        expected = max(
            float(1 - batch.probabilities[sure].max(axis=1).mean()), _rate(*_sure(trusted, known))
        )
        figures |= {"expected": expected * sure.sum()}
        if contradicted(int(against.sum()), int(sure.sum()), expected):
            reasons.append(
                f"{against.sum()} of {sure.sum()} rows that the champion is sure of are labelled "
                f"otherwise, where {expected * sure.sum():.0f} were to be expected: more than "
                f"{WRONG:.0%} of the labels must be wrong, or what they mean has changed"
            )

    source = np.random.default_rng(seed)
    size = min(rows, len(trusted.labels), _ROWS)
    found, usual = (_agreement_of(some, size, source) for some in (batch, trusted))
    if np.isfinite([found, usual]).all():
        figures |= {"agreement": found, "usual_agreement": usual}
        if usual >= TELLING and found < AGREEMENT * usual:
            reasons.append(
                f"the labels of rows that look alike agree by {found:.2f} over chance, against "
                f"{usual:.2f} among trusted rows"
            )

    labels, predicted = (
        np.bincount(x, minlength=len(classes))
        for x in (batch.labels, batch.probabilities.argmax(axis=1))
    )
    ordinary = _most_frequent(trusted, rows, source)
    figures |= {
        "one_label": labels.max() / rows,
        "one_prediction": predicted.max() / rows,
        "usual_prediction": ordinary,
    }
    most = int(predicted.max())
    if labels.max() >= ONE_CLASS * rows and most < rows * min(SPREAD, ORDINARY * ordinary):
        label, prediction = (classes[int(counts.argmax())] for counts in (labels, predicted))
        reasons.append(
            f"{labels.max()} of {rows} rows are labelled {label!r}, while the champion sees "
            f"several classes in them: {prediction!r}, the most frequent, in {most}"
        )
    return Suspicion(bool(reasons), tuple(reasons), {k: float(v) for k, v in figures.items()})


def contradicted(against: int, sure: int, expected: float) -> bool:
    r"""Whether more than the share ``WRONG`` of labels must be wrong, beyond chance.

    A champion that is wrong at a rate q, on labels of which a share w is wrong, is contradicted
    at a rate of about :math:`q + (1 - q) w`. With ``WRONG`` for w, a binomial test asks whether so
    many contradictions are more than that. Rows differ in their rate; the tail of a sum of unlike
    coins is thinner than that of like ones with the same mean (Hoeffding 1956), so that the test
    errs on the side of the batch.

    Args:
        against: rows labelled otherwise than the champion is sure of.
        sure: rows that it is sure of.
        expected: rate q at which it is wrong where it is sure.

    Example:
        >>> contradicted(32, 50, 0.05), contradicted(18, 50, 0.05)
        (True, False)
    """
    limit = expected + (1 - expected) * WRONG
    return bool(stats.binom.sf(against - 1, sure, limit) <= LEVEL)


def agreement(features: Floats, labels: Integers) -> float:
    r"""How far labels agree with those of the nearest other rows: 0 by chance, 1 throughout.

    .. math::
        \kappa = \frac{a - c}{1 - c}

    with a the share of the neighbours that have the label of the row, and c what it is for labels
    dealt out at random.

    Args:
        features: ``[rows, d]``.
        labels: ``[rows]``.

    Returns:
        The agreement; NaN where there is but one label.

    Example:
        >>> agreement(np.repeat([[0.0], [1.0]], 6, axis=0), np.repeat([0, 1], 6))
        1.0
    """
    rows = len(labels)
    distances = cdist(features, features, "sqeuclidean")
    np.fill_diagonal(distances, np.inf)
    nearest = np.argpartition(distances, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    agree = (labels[nearest] == labels[:, None]).mean()
    chance = ((np.bincount(labels)[labels] - 1) / (rows - 1)).mean()
    return float((agree - chance) / (1 - chance)) if chance < 1 else float("nan")


def _sure(judged: Judged, known: Truths) -> tuple[Truths, Truths]:
    """Which rows with a label that the champion knows it is sure of, and right or wrong about."""
    sure = (judged.probabilities.max(axis=1) >= SURE) & known[judged.labels]
    return sure, sure & (judged.probabilities.argmax(axis=1) != judged.labels)


def _rate(sure: Truths, against: Truths) -> float:
    """Laplace's estimate of the rate at which the champion is wrong where it is sure."""
    return float((against.sum() + 1) / (sure.sum() + 2))


def _most_frequent(trusted: Judged, rows: int, source: np.random.Generator) -> float:
    """Mean share of the most frequent prediction in as many trusted rows; 1 where there are none.

    The fewer the rows, the larger the share of the most frequent of many classes by chance.
    """
    predicted = trusted.probabilities.argmax(axis=1)
    if not len(predicted):
        return 1.0
    draws = source.choice(predicted, (_SUBSETS, rows))
    return float(np.mean([np.bincount(draw).max() for draw in draws]) / rows)


def _agreement_of(judged: Judged, size: int, source: np.random.Generator) -> float:
    """Mean agreement in subsets: few rows have far neighbours, so that only like sizes compare."""
    if size < FEWEST:
        return float("nan")
    rows = len(judged.labels)
    subsets = [source.permutation(rows)[:size] for _ in range(_SUBSETS if size < rows else 1)]
    return float(np.mean([agreement(judged.features[s], judged.labels[s]) for s in subsets]))
