"""Alarms of a monitor: they name what moved, are rare where nothing does, and survive a restart."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.detectors import ADWIN, DDM, PageHinkley
from lightning_evolve.evolution.monitoring import HISTORY, Alarm, Monitor, change_point

CLASSES = ("sport", "world", "science", "business")


class Rows:
    """A calibrated classifier in use.

    Args:
        sure: least confidence; higher ones are uniform up to 1.
        shares: of the predicted classes.
        moved: by how much dimension 5 of the features is off.
        wrong: probability of an error that the confidence does not show, by class; None leaves the
            error to the confidence.
    """

    def __init__(self, sure=0.7, shares=(0.4, 0.3, 0.2, 0.1), moved=0.0, wrong=None, dims=8):
        self.sure, self.shares, self.moved, self.dims = sure, shares, moved, dims
        self.wrong = wrong

    def draw(self, rng, rows, labelled=True):
        classes = len(self.shares)
        predicted = rng.choice(classes, rows, p=self.shares)
        confidence = rng.uniform(self.sure, 1, rows)
        probabilities = np.repeat((1 - confidence)[:, None] / (classes - 1), classes, axis=1)
        probabilities[np.arange(rows), predicted] = confidence
        rate = 1 - confidence if self.wrong is None else np.asarray(self.wrong)[predicted]
        other = (predicted + rng.integers(1, classes, rows)) % classes
        labels = np.where(rng.random(rows) < rate, other, predicted)
        features = rng.normal(size=(rows, self.dims))
        features[:, 5 % self.dims] += self.moved
        return probabilities, features, labels if labelled else np.full(rows, -1)


def feed(monitor, rng, rows, kind=None, batch=50, labelled=True, time=0.0):
    found = []
    for start in range(0, rows, batch):
        drawn = (kind or Rows()).draw(rng, min(batch, rows - start), labelled)
        found += monitor.observe(time + start, *drawn, CLASSES)
    return found


def kinds(alarms):
    return {alarm.kind for alarm in alarms}


def test_where_nothing_moves_false_alarms_are_as_rare_as_is_said():
    streams = 40
    alarmed = 0
    for seed in range(streams):
        monitor = Monitor([PageHinkley()], window=50, significance=0.05)
        alarmed += bool(feed(monitor, np.random.default_rng(seed), 1500, batch=500))
    # At most 0.05 * 40 = 2 are expected; with 0.05 for each of the 29 windows it is nearly all.
    assert alarmed <= 6


def test_a_rise_of_the_error_names_the_class():
    rng = np.random.default_rng(0)
    monitor = Monitor([ADWIN(), PageHinkley(), DDM()])
    monitor.set_reference(*Rows(wrong=(0.1,) * 4).draw(rng, 600), CLASSES)
    batch = Rows(wrong=(0.1,) * 4).draw(rng, 400)
    probabilities, features, labels = batch
    # Everything that is about business is taken for something else.
    guess = probabilities.argmax(axis=1)
    labels = np.where(rng.random(400) < 0.4, 3, guess)
    alarms = monitor.observe(7.0, probabilities, features, labels, CLASSES)
    assert {alarm.detector for alarm in alarms} == {"ADWIN", "PageHinkley", "DDM"}
    for alarm in alarms:
        assert alarm.kind == "degradation"
        assert alarm.time == 7.0
        assert alarm.before == pytest.approx(0.1, abs=0.04)
        assert alarm.after > 0.25
        assert alarm.moved[0] == "business"
        assert alarm.message == (
            f"error rose from {alarm.before:.2f} to {alarm.after:.2f} ({alarm.detector}); "
            "most of the new errors on class 'business'"
        )


def test_a_champion_that_is_worse_in_use_than_on_its_tune_data_is_noticed():
    rng = np.random.default_rng(0)
    worse = Rows(wrong=(0.4,) * 4)
    with_labels, without = Monitor(), Monitor()
    probabilities, features, labels = Rows(wrong=(0.1,) * 4).draw(rng, 500)
    with_labels.set_reference(probabilities, features, labels, CLASSES)
    without.set_reference(probabilities, features, np.full(500, -1), CLASSES)
    state = rng.bit_generator.state
    assert kinds(feed(with_labels, rng, 200, worse)) == {"degradation"}
    rng.bit_generator.state = state
    assert not feed(without, rng, 200, worse)


def test_nothing_alarms_where_errors_and_doubts_become_fewer():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        monitor = Monitor([ADWIN(), PageHinkley()], window=200)
        doubtful, sure = Rows(sure=0.4), Rows(sure=0.95)
        monitor.set_reference(*doubtful.draw(rng, 200), CLASSES)
        assert not feed(monitor, rng, 600, doubtful)
        assert not feed(monitor, rng, 1000, sure)


@pytest.mark.parametrize("embedding", ["ks", "mmd"])
@pytest.mark.parametrize(
    ("drift", "kind", "moved", "said"),
    [
        (
            Rows(sure=0.4),
            "estimated_accuracy",
            "sport",
            "estimated accuracy fell from 0.8",
        ),
        (Rows(moved=1.0), "embedding", "dimension 5", "most in dimension 5: mean from "),
        (
            Rows(shares=(0.3, 0.3, 0.1, 0.3)),
            "classes",
            "business",
            "'business' from 0.1",
        ),
    ],
)
def test_without_labels_an_alarm_names_what_moved(drift, kind, moved, said, embedding):
    rng = np.random.default_rng(1)
    monitor = Monitor(window=200, embedding=embedding)
    # The first window becomes the reference; its features change in nothing but where they should.
    assert not feed(monitor, rng, 1000, labelled=False)
    alarms = feed(monitor, rng, 600, drift, labelled=False)
    assert kinds(alarms) == {kind}
    (alarm,) = alarms  # once: the drift is the new reference after that
    assert alarm.moved[0] == moved
    assert said in alarm.message
    assert f"{alarm.before:.2f} to {alarm.after:.2f}" in alarm.message
    assert alarm.detector in alarm.message


def test_a_new_champion_brings_its_own_reference():
    rng = np.random.default_rng(0)
    monitor = Monitor(window=100)
    feed(monitor, rng, 350, labelled=False)
    later = Rows(sure=0.4, moved=2.0, shares=(0.1, 0.1, 0.1, 0.7), dims=3)
    monitor.set_reference(*later.draw(rng, 300, labelled=False), CLASSES)
    assert not feed(monitor, rng, 500, later, labelled=False)
    assert feed(monitor, rng, 300, Rows(dims=3), labelled=False)


def test_classes_may_come_and_be_named_before_they_can_be_predicted():
    rng = np.random.default_rng(0)
    monitor = Monitor(window=100)
    probabilities, features, labels = Rows().draw(rng, 200)
    monitor.observe(0, probabilities, features, np.full(200, 4), (*CLASSES, "weather"))
    grown = Rows(shares=(0.2, 0.2, 0.2, 0.1, 0.3))
    probabilities, features, labels = grown.draw(rng, 200)
    alarms = monitor.observe(1, probabilities, features, labels, (*CLASSES, "weather"))
    (alarm,) = [alarm for alarm in alarms if alarm.kind == "classes"]
    assert alarm.moved[0] == "weather"
    assert "'weather' from 0.00 to " in alarm.message


def test_how_rows_are_cut_into_batches_changes_nothing():
    rng = np.random.default_rng(0)
    good, bad = Rows().draw(rng, 300), Rows(sure=0.3, moved=2).draw(rng, 337)
    rows = [np.concatenate(pair) for pair in zip(good, bad, strict=True)]
    states, alarms = [], []
    for cuts in ([], [1, 2, 100, 101, 555], list(range(0, 637, 7))):
        monitor = Monitor(window=100)
        parts = zip(*(np.split(array, cuts) for array in rows), strict=True)
        alarms.append([a for part in parts for a in monitor.observe(0, *part, CLASSES)])
        states.append(monitor.state_dict())
    assert states[0] == states[1] == states[2]
    assert set(alarms[0]) == set(alarms[1]) == set(alarms[2])
    assert len(kinds(alarms[0])) == 3


@pytest.mark.parametrize("seed", range(6))
def test_saved_at_any_moment_it_goes_on_with_the_same_alarms(seed):
    rng = np.random.default_rng(seed)
    batches = [
        (float(rng.integers(100)), *kind.draw(rng, int(rng.integers(0, 40))), CLASSES)
        for kind in (Rows(), Rows(sure=0.4), Rows(sure=0.4, moved=1.5))
        for _ in range(25)
    ]

    def make():
        return Monitor([ADWIN(), PageHinkley(threshold=5.0), DDM()], window=60)

    whole = make()
    expected = [alarm for batch in batches for alarm in whole.observe(*batch)]
    assert len(kinds(expected)) >= 3
    stop = int(rng.integers(len(batches)))
    first, second = make(), make()
    found = [alarm for batch in batches[:stop] for alarm in first.observe(*batch)]
    feed(second, rng, 100)  # whatever it has seen is forgotten
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    found += [alarm for batch in batches[stop:] for alarm in second.observe(*batch)]
    assert found == expected
    assert second.state_dict() == whole.state_dict()


def test_a_fresh_monitor_can_be_saved():
    monitor, other = Monitor(), Monitor()
    other.load_state_dict(json.loads(json.dumps(monitor.state_dict(), allow_nan=False)))
    assert other.state_dict() == monitor.state_dict()


def test_time_that_runs_backwards_stamps_no_earlier_alarm():
    rng = np.random.default_rng(0)
    late, early = Monitor(), Monitor()
    for monitor, times in ((late, (100.0, 200.0)), (early, (100.0, -50.0))):
        rng = np.random.default_rng(0)
        feed(monitor, rng, 500, Rows(wrong=(0.1,) * 4), batch=500, time=times[0])
        batch = Rows(wrong=(0.5,) * 4).draw(rng, 300)
        alarms = monitor.observe(times[1], *batch, CLASSES)
        assert [alarm.time for alarm in alarms] == [max(times)] * len(alarms) != []
    monitor.set_reference(*Rows().draw(rng, 50), CLASSES)
    assert monitor.time == 100.0


def test_labels_that_come_later_count_once():
    rng = np.random.default_rng(0)
    probabilities, features, labels = Rows(wrong=(0.1,) * 4).draw(rng, 700)
    labels[500:] = (probabilities.argmax(axis=1)[500:] + 1) % 4
    at_once, later = Monitor(), Monitor()
    alarms = at_once.observe(1, probabilities, features, labels, CLASSES)
    assert not later.observe(1, probabilities, features, np.full(700, -1), CLASSES)
    predicted = probabilities.argmax(axis=1)
    assert later.observe_labels(1, predicted, labels, CLASSES) == alarms != []
    assert at_once.state_dict() == later.state_dict()


def test_an_alarm_long_after_its_cause_is_named_from_what_is_kept():
    monitor = Monitor([PageHinkley(delta=0.001, threshold=200)])
    predicted = np.zeros(HISTORY * 3, dtype=int)
    labels = np.zeros(HISTORY * 3, dtype=int)
    labels[HISTORY * 2 :: 5] = 2
    (alarm,) = monitor.observe_labels(0, predicted, labels, CLASSES)
    assert (alarm.before, alarm.after) == (0, pytest.approx(0.2, abs=0.02))
    assert alarm.moved == ("science",)


def test_change_point_is_where_the_mean_rises():
    rng = np.random.default_rng(0)
    found = [change_point([*(rng.random(200) < 0.1), *(rng.random(60) < 0.6)]) for _ in range(50)]
    assert abs(np.median(found) - 200) <= 2
    assert change_point([True, False]) == 1
    # Falls do not count: the rise at the end is smaller than the fall before it.
    assert change_point([True] * 20 + [False] * 40 + [True] * 5) == 60


def test_alarms_are_plain_and_frozen():
    alarm = Alarm(1.0, "classes", "chi-square", 0.1, 0.2, ("a",), "moved")
    assert json.loads(json.dumps(dataclasses.asdict(alarm)))["moved"] == ["a"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        alarm.time = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"window": 5}, "window is 5: give 20 rows or more"),
        ({"significance": 0}, "significance is 0"),
        ({"significance": math.nan}, "significance is nan"),
        ({"embedding": "psi"}, "embedding is 'psi': give ks or mmd"),
        ({"detectors": [ADWIN(), ADWIN()]}, "detectors are ADWIN, ADWIN: give each of them once"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(UsageError, match=said):
        Monitor(**settings)


def _bad(**changes):
    rng = np.random.default_rng(0)
    probabilities, features, labels = Rows().draw(rng, 10)
    given = {
        "time": 1.0,
        "probabilities": probabilities,
        "features": features,
        "labels": labels,
        "classes": CLASSES,
    }
    return {**given, **{name: change(given[name]) for name, change in changes.items()}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time": lambda _: math.nan}, "time is nan: give seconds"),
        ({"probabilities": lambda p: p[0]}, r"the shape \[4\] and there are 4 classes"),
        ({"probabilities": lambda p: p * np.nan}, "NaN or do not sum to 1"),
        ({"probabilities": lambda p: p * 2}, "do not sum to 1"),
        ({"probabilities": lambda p: p - [1, -1, 0, 0]}, "probabilities are negative"),
        ({"classes": lambda _: CLASSES[:3]}, "there are 3 classes"),
        ({"classes": lambda _: ("a", "b", "a", "c")}, "the class 'a' is there twice"),
        ({"labels": lambda y: y[:5]}, r"labels have the shape \[5\]"),
        ({"labels": lambda y: y.astype(float)}, "type float64"),
        ({"labels": lambda y: y * 0 + 4}, "labels: 4 is none of 4 classes"),
        ({"labels": lambda y: y * 0 - 2}, "labels: -2 is none of 4 classes"),
        ({"features": lambda x: x[:5]}, r"features have the shape \[5, 8\] for 10 rows"),
        ({"features": lambda x: x * np.inf}, "not finite"),
        ({"features": lambda x: x[:, :3]}, "features have 3 dimensions and had 8"),
    ],
)
def test_a_bad_batch_is_refused_whole(changes, said):
    monitor = Monitor()
    monitor.observe(**_bad())
    before = monitor.state_dict()
    with pytest.raises(UsageError, match=said):
        monitor.observe(**_bad(**changes))
    assert monitor.state_dict() == before


def test_the_state_of_other_detectors_is_refused():
    with pytest.raises(UsageError, match="with the detectors ADWIN and has DDM: give the same"):
        Monitor([DDM()]).load_state_dict(Monitor([ADWIN()]).state_dict())


def test_no_rows_and_no_features_are_fine():
    monitor = Monitor(window=20)
    rng = np.random.default_rng(0)
    probabilities, features, labels = Rows().draw(rng, 0)
    monitor.set_reference(probabilities, features, labels, CLASSES)
    assert monitor.observe(0, probabilities, features, labels, CLASSES) == []
    probabilities, _, labels = Rows().draw(rng, 70)
    assert monitor.observe(0, probabilities, None, labels, CLASSES) == []
    assert monitor.windows["embedding"].reference is None
    assert monitor.windows["classes"].looks == 2
