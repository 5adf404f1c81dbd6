"""A challenger beside the champion: hand computations, and the bootstrap against SciPy's."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, log_loss

from lightning_evolve.evolution import evaluation
from lightning_evolve.evolution.evaluation import (
    Comparison,
    Cost,
    calibration_error,
    compare,
)

NAMES = ("a", "b", "c")


def models(rows=200, seed=0):
    """Two models of three classes, the second the better one, and the labels."""
    source = np.random.default_rng(seed)
    labels = source.integers(3, size=rows)
    found = []
    for strength in (1.0, 2.0):
        logits = source.normal(size=(rows, 3)) + strength * np.eye(3)[labels]
        found.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    return (*found, labels)


def test_scores_by_hand():
    champion = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.5, 0.5, 0]])
    challenger = np.array([[0.4, 0.6, 0], [0.1, 0.9, 0], [0.1, 0.8, 0.1], [0, 0.1, 0.9]])
    found = compare(champion, challenger, np.array([0, 1, 1, 2]), NAMES)
    assert (found.champion.accuracy, found.challenger.accuracy) == (0.5, 0.75)
    # a: 1 hit, 3 predicted, 1 there; b: 1 hit, 1 predicted, 2 there; c: none.
    assert found.champion.macro_f1 == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)
    losses = [-math.log(p) for p in (0.9, 0.4, 0.8, evaluation.FLOOR)]
    assert found.champion.loss == pytest.approx(sum(losses) / 4), "finite on an unknown class"
    assert found.accuracy.mean == 0.25
    assert (found.gained, found.lost) == (2, 1)
    a, b, c = (found.classes[name] for name in NAMES)
    assert (a.rows, a.champion, a.challenger, a.gained, a.lost) == (1, 1.0, 0.0, 0, 1)
    assert (b.rows, b.champion, b.challenger, b.difference) == (2, 0.5, 1.0, 0.5)
    assert (c.champion, c.challenger, c.gained) == (0.0, 1.0, 1)


def test_scores_are_those_of_scikit_learn():
    champion, challenger, labels = models()
    weights = np.random.default_rng(1).uniform(0.5, 3, size=len(labels))
    found = compare(champion, challenger, labels, NAMES, weights=weights)
    predicted = challenger.argmax(axis=1)
    assert found.challenger.macro_f1 == pytest.approx(
        f1_score(labels, predicted, average="macro", sample_weight=weights)
    )
    assert found.challenger.loss == pytest.approx(
        log_loss(labels, challenger, sample_weight=weights)
    )
    assert found.challenger.accuracy == pytest.approx(
        np.average(predicted == labels, weights=weights)
    )


def test_a_row_that_weighs_two_is_two_rows():
    champion, challenger, labels = models(40)
    weights = np.where(np.arange(40) < 10, 2.0, 1.0)
    twice = np.r_[np.arange(10), np.arange(40)]
    weighted = compare(champion, challenger, labels, NAMES, weights=weights)
    plain = compare(champion[twice], challenger[twice], labels[twice], NAMES)
    for name in ("accuracy", "macro_f1", "loss"):
        assert getattr(weighted, name).mean == pytest.approx(getattr(plain, name).mean)
    assert weighted.classes["a"].champion == pytest.approx(plain.classes["a"].champion)


def test_calibration_error_by_hand():
    # Bins of 1/15: 0.95 and 0.97 share the last, 0.72 has its own.
    p = np.array([0.95, 0.97, 0.72, 0.72, 0.72])
    labels = np.array([0, 1, 0, 0, 1])
    expected = 2 / 5 * abs(0.5 - 0.96) + 3 / 5 * abs(2 / 3 - 0.72)
    assert calibration_error(np.stack([p, 1 - p], axis=1), labels) == pytest.approx(expected)


def test_a_probability_above_one_by_rounding_is_no_logit():
    p = np.array([[1.0000001, 0.0], [0.0, 1.0]])
    assert calibration_error(p, np.array([0, 1])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rows", [60, 400])
def test_the_bootstrap_is_scipys(rows):
    champion, challenger, labels = models(rows)
    found = compare(champion, challenger, labels, NAMES, resamples=20_000)
    rights = [(p.argmax(axis=1) == labels).astype(float) for p in (challenger, champion)]
    losses = [-np.log(p[np.arange(rows), labels]) for p in (challenger, champion)]
    truth = np.eye(len(NAMES))[labels]
    briers = [((p - truth) ** 2).sum(axis=1) / 2 for p in (challenger, champion)]
    assert found.champion.brier == pytest.approx(briers[1].mean())
    for ours, pair in (
        (found.accuracy, rights),
        (found.loss, losses),
        (found.brier, briers),
    ):
        theirs = stats.bootstrap(
            pair,
            lambda new, old, axis: new.mean(axis=axis) - old.mean(axis=axis),
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=20_000,
            rng=np.random.default_rng(3),
        ).confidence_interval
        width = theirs.high - theirs.low
        assert ours.low == pytest.approx(theirs.low, abs=0.05 * width + 0.5 / rows)
        assert ours.high == pytest.approx(theirs.high, abs=0.05 * width + 0.5 / rows)
    difference = briers[1] - briers[0]
    normal = difference.mean() - 1.645 * difference.std() / math.sqrt(rows)
    assert found.lower == pytest.approx(normal, abs=0.012), "one-sided: 1.64, not 1.96"


def test_what_is_hard_for_both_does_not_widen_the_interval():
    labels = np.zeros(200, dtype=int)
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    champion = np.array([right] * 100 + [wrong] * 100)
    challenger = np.array([right] * 110 + [wrong] * 90)
    found = compare(champion, challenger, labels, ("a", "b"))
    # 10 rows of 200 differ: 1.96 sqrt(0.05 * 0.95 / 200); unpaired it would be 0.1 to either side.
    assert found.accuracy.low == pytest.approx(0.05 - 0.030, abs=0.006)
    assert found.lower > 0


def test_a_model_against_itself():
    champion, _, labels = models()
    found = compare(champion, champion, labels, NAMES)
    for difference in (found.accuracy, found.macro_f1, found.loss, found.brier):
        assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert found.lower == 0
    assert found.chance == 1


def test_the_interval_covers_as_often_as_it_says():
    truth, covered, above = 0.1, 0, 0
    for seed in range(200):
        source = np.random.default_rng(seed)
        labels = np.zeros(150, dtype=int)
        kind = source.choice(3, p=[0.7, 0.2, 0.1], size=150)  # same, gained, lost
        champion = np.where((kind == 1)[:, None], [0.2, 0.8], [0.8, 0.2])
        challenger = np.where((kind == 2)[:, None], [0.2, 0.8], [0.8, 0.2])
        found = compare(champion, challenger, labels, ("a", "b"), resamples=500)
        covered += found.accuracy.low <= truth <= found.accuracy.high
        above += found.lower > truth * (0.64 - 0.04)  # half the Brier score of wrong, of right
    assert 0.90 <= covered / 200 <= 0.99
    assert above / 200 <= 0.10


def test_the_seed_decides_and_blocks_do_not(monkeypatch):
    champion, challenger, labels = models()
    first = compare(champion, challenger, labels, NAMES)
    assert first == compare(champion, challenger, labels, NAMES)
    assert first != compare(champion, challenger, labels, NAMES, seed=1)
    monkeypatch.setattr(evaluation, "_BLOCK", 700)
    small = compare(champion, challenger, labels, NAMES)
    assert small.accuracy == first.accuracy
    assert small.loss.low == pytest.approx(first.loss.low)


def test_json_there_and_back():
    champion, challenger, labels = models()
    costs = (Cost(0.0, 10, 50.0), Cost(12.5, 20, 80.0))
    for found in (
        compare(champion, challenger, labels, NAMES),
        compare(champion, challenger, labels, NAMES, costs=costs),
    ):
        assert Comparison.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.challenger.cost == costs[1]
