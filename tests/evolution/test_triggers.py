"""When a generation starts."""

from __future__ import annotations

import pytest

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.monitoring import Alarm
from lightning_evolve.evolution.triggers import Amount, AnyOf, Every, OnDegradation, OnDrift


def alarm(kind):
    return Alarm(1.0, kind, "D", 0.1, 0.3, ("sport",), f"{kind} moved")


KINDS = ("degradation", "estimated_accuracy", "embedding", "classes")


def test_amount():
    assert Amount(10).due(9, 0, 0, ()) is None
    assert Amount(10).due(10, 0, 0, ()) == "10 new records (of 10)"


def test_every_and_a_clock_that_runs_backwards():
    every = Every(60)
    assert every.due(1, 159, 100, ()) is None
    assert every.due(1, 160, 100, ()) == "60 s since the last generation (of 60)"
    assert every.due(1, 0, 1e9, ()) is None


@pytest.mark.parametrize("kind", KINDS)
def test_alarms(kind):
    degraded = kind in ("degradation", "estimated_accuracy")
    said = f"{kind} moved"
    assert OnDegradation().due(1, 0, 0, [alarm(kind)]) == (said if degraded else None)
    assert OnDrift().due(1, 0, 0, [alarm(kind)]) == (None if degraded else said)
    assert OnDrift().due(1, 0, 0, ()) is None


def test_any_of_gives_the_first_reason():
    policy = AnyOf([Every(60), AnyOf([Amount(5)]), OnDrift()])
    assert policy.due(1, 0, 0, ()) is None
    assert policy.due(9, 99, 0, [alarm("classes")]).startswith("99 s")
    assert policy.due(9, 0, 0, [alarm("classes")]) == "9 new records (of 5)"
    assert policy.due(1, 0, 0, [alarm("degradation"), alarm("classes")]) == "classes moved"


@pytest.mark.parametrize(
    "policy", [Amount(1), Every(1), OnDrift(), OnDegradation(), AnyOf([Every(1)])]
)
def test_nothing_starts_without_records(policy):
    everything = [alarm(kind) for kind in KINDS]
    assert policy.due(0, 1e9, 0, everything) is None
    assert policy.due(1, 1e9, 0, everything)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Amount(0), "records is 0: give 1 or more"),
        (lambda: Every(0), "seconds is 0: give more than 0"),
        (lambda: Every(float("nan")), "seconds is nan"),
        (lambda: AnyOf([]), "triggers is empty"),
    ],
)
def test_bad_settings(make, said):
    with pytest.raises(UsageError, match=said):
        make()
