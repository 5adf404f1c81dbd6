import contextlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution import feedback
from lightning_evolve.evolution.feedback import (
    BadFeedbackError,
    FeedbackStore,
    Given,
    Prediction,
    UnknownPredictionError,
)

CHILDREN = Path(__file__).with_name("children.py")


def answer(identity, text=None, **options):
    given = {"label": "a", "confidence": 0.75, "probabilities": {"a": 0.75, "b": 0.25}}
    return Prediction(
        identity, text or f"text of {identity}", **given, generation=3, time=9.0, **options
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "service.sqlite"


@pytest.fixture
def store(path):
    store = FeedbackStore(path, trust={"editor": 3.0, "bot": 0.5})
    store.log_predictions([answer("p"), answer("q")])
    yield store
    store.close()


def resolved(store, after=0):
    return [(c.text[-1], c.label, c.weight, c.sources) for c in store.corrections(after)]


# ------------------------------------------------------------------------------------- answers


def test_answers_come_back_in_order_and_once(store):
    assert store.log_predictions([answer("p"), answer("r"), answer("r")]) == 1
    found = store.predictions()
    assert [(p.seq, p.id) for p in found] == [(1, "p"), (2, "q"), (found[2].seq, "r")]
    assert found[0] == answer("p", seq=1)
    assert [p.id for p in store.predictions(after_seq=1, limit=1)] == ["q"]
    assert store.count("predictions") == 3
    assert store.count("feedback") == 0


def test_old_answers_are_forgotten_and_what_was_said_of_them_is_not(store, monkeypatch):
    monkeypatch.setattr(feedback, "_FORGOTTEN", 2)
    store.log_predictions([answer(f"old {n}") for n in range(4)])
    store.log_predictions([replace(answer("new"), time=11.0)])
    store.give("p", "b", "ann")
    assert store.forget(10.0) == 6
    assert [p.id for p in store.predictions()] == ["new"]
    assert store.forget(10.0) == 0
    assert resolved(store) == [("p", "b", 1.0, ("ann",))]
    with pytest.raises(UnknownPredictionError):
        store.give("q", "b", "ann")
    store.log_predictions([answer("next")])
    assert store.predictions()[-1].seq == 8, "no place is given twice"


def test_what_is_private_is_not_written(store, path):
    store.log_predictions([answer("r", "I am ann@example.org"), answer("s", "half \ud83d")])
    assert [p.text for p in store.predictions(2)] == ["I am [EMAIL]", "half ?"]
    store.give("r", "b", "ann")
    assert store.corrections()[0].text == "I am [EMAIL]"
    plain = FeedbackStore(path, redact=False)
    plain.log_predictions([answer("t", "I am ann@example.org")])
    assert plain.predictions(4)[0].text == "I am ann@example.org"


# --------------------------------------------------------------------------------- corrections


def test_the_same_again_changes_nothing_and_another_label_replaces(store):
    assert store.give("p", "b", "ann") == Given("accepted", 1)
    assert store.give("p", "b", "ann") == Given("repeated", 1)
    assert store.give("p", " b ", "ann") == Given("repeated", 1)
    assert store.give("p", "b", "ben") == Given("accepted", 2)
    assert store.give("q", "b", "ann") == Given("accepted", 3)
    assert store.give("p", "c", "ann") == Given("replaced", 4)
    assert store.give("p", "b", "ann") == Given("replaced", 5)
    assert store.count("feedback") == 5  # the history is kept


def test_a_late_repetition_that_has_its_time_is_known(store):
    store.give("p", "b", "ann", 100.0)
    store.give("p", "c", "ann", 200.0)
    assert store.give("p", "b", "ann", 100.0).status == "repeated"
    assert resolved(store) == [("p", "c", 1.0, ("ann",))]


@pytest.mark.parametrize(
    ("voices", "expected"),
    [
        ([("b", "ann")], ("b", 1.0, ("ann",))),
        ([("b", "ann"), ("c", "ben")], ("c", 1.0, ("ben",))),  # a tie: the last
        ([("b", "ann"), ("c", "ben"), ("b", "cid")], ("b", 2.0, ("ann", "cid"))),
        ([("b", "ann"), ("b", "ben"), ("c", "cid")], ("b", 2.0, ("ann", "ben"))),
        ([("c", "editor"), ("b", "ann"), ("b", "ben")], ("c", 3.0, ("editor",))),
        ([("b", "ann"), ("c", "bot")], ("b", 1.0, ("ann",))),
        ([("b", "ann"), ("b", "ben"), ("c", "cid"), ("c", "ann")], ("c", 2.0, ("ann", "cid"))),
        ([("b", "editor"), ("c", "editor"), ("b", "ann")], ("c", 3.0, ("editor",))),
    ],
)
def test_conflicts_are_resolved_by_the_sum_of_trust_then_by_the_last(store, voices, expected):
    for label, source in voices:
        store.give("p", label, source)
    assert resolved(store) == [("p", *expected)]


def test_two_answers_to_one_text_are_one_matter(store):
    store.log_predictions([answer("r", "TEXT of  p")])
    for identity, label, source in (("p", "b", "ann"), ("p", "b", "ben"), ("r", "c", "cid")):
        store.give(identity, label, source)
    assert resolved(store) == [("p", "b", 2.0, ("ann", "ben"))]


def test_only_what_is_new_comes_with_all_that_was_said(store):
    store.give("p", "b", "ann")
    store.give("q", "b", "ann")
    store.give("p", "b", "ben")
    assert [(c.seq, c.text[-1]) for c in store.corrections()] == [(2, "q"), (3, "p")]
    assert resolved(store, 2) == [("p", "b", 2.0, ("ann", "ben"))]
    assert resolved(store, 3) == []


def test_clocks_that_run_backwards_decide_nothing(store):
    store.give("p", "b", "ann", 2e9)
    store.give("p", "c", "ben", 1e9)
    store.give("p", "d", "ann", 5.0)
    assert resolved(store) == [("p", "d", 1.0, ("ann",))]
    assert [c.seq for c in store.corrections()] == [3]


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        (("nowhere", "b", "ann"), UnknownPredictionError, "'nowhere' is not known"),
        (("p", "", "ann"), UsageError, "label is empty"),
        (("p", None, "ann"), UsageError, "label is empty"),
        (("p", ["b"], "ann"), UsageError, "neither a name nor a number"),
        (("p", "\ud800", "ann"), UsageError, "no valid Unicode"),
        (("p", "x" * 201, "ann"), UsageError, "more than 200 characters"),
        (("p", "b", ""), UsageError, "source is ''"),
        (("p", "b", "x" * 101), UsageError, "source is 'x"),
        (("p", "b", "\ud800"), UsageError, "source is no valid Unicode"),
        (("p", "b", 3), UsageError, "source is 3"),
        (("p", "b", "ann", -1.0), UsageError, "time is neither"),
        (("p", "b", "ann", float("nan")), UsageError, "time is neither"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(store, values, error, match):
    with pytest.raises(error, match=match) as raised:
        store.give(*values)
    assert "\n" not in str(raised.value)
    assert store.count("feedback") == 0
    assert store.give("p", "b", "ann").status == "accepted"


def test_labels_that_are_no_classes(store):
    store.classes = ["sports", "science", "politics"]
    with pytest.raises(BadFeedbackError, match=r"'sport' is no class .* nearest are sports"):
        store.give("p", "sport", "ann")
    assert store.give("p", "sports", "ann").status == "accepted"


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_trust_below_nothing(path, weight):
    with pytest.raises(UsageError, match="trust of 'x'"):
        FeedbackStore(path, trust={"x": weight})


# --------------------------------------------------------------------------------------- files


def test_a_file_of_corrections(store, tmp_path):
    file = tmp_path / "fixes.csv"
    file.write_text(
        "prediction_id,text,label,source,time\n"
        "p,,b,ann,100\n"
        "p,,c,ann,200\n"
        ",Another text,d,,300\n"
        "x,,b,ann,1\n"
        "q,,,ann,1\n"
        "q,,b\n"
        ",,b,ann,1\n"
        "q,,b,ann,noon\n"
    )
    imported = store.import_file(file)
    assert imported.counts == {"accepted": 2, "replaced": 1}
    assert [place for place, _ in imported.bad] == [f"fixes.csv:{n}" for n in (5, 6, 7, 8, 9)]
    assert "'x' is not known" in imported.bad[0][1]
    expected = [("p", "c", 1.0, ("ann",)), ("t", "d", 1.0, ("file:fixes.csv",))]
    assert resolved(store) == expected
    assert store.import_file(file).counts == {"repeated": 3}
    assert resolved(store) == expected


def test_a_long_file_of_another_format(store, tmp_path):
    file = tmp_path / "fixes.jsonl"
    rows = [{"text": f"t{n}", "label": "b"} for n in range(1234)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert store.import_file(file).counts == {"accepted": 1234}
    assert store.count("feedback") == 1234


def test_a_file_that_is_none(store, tmp_path):
    with pytest.raises(UsageError, match="none of"):
        store.import_file(tmp_path / "fixes.txt")
    with pytest.raises(UsageError, match="cannot be read"):
        store.import_file(tmp_path / "fixes.csv")


# -------------------------------------------------------------------------- one file, many users


def test_a_store_of_a_newer_version(store, path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=2")
    with pytest.raises(UsageError, match=r"is of version 2 .* update lightning_evolve"):
        FeedbackStore(path)


def test_a_file_that_is_no_store(path):
    path.write_bytes(b"no database" * 100)
    with pytest.raises(UsageError, match="damaged"):
        FeedbackStore(path)


def test_a_full_disk_acknowledges_nothing_that_is_not_there(store, path):
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count={pages + 4}")
    given = []

    def log():
        for number in range(10_000):
            store.log_predictions([answer(f"r{number}", "word " * 300)])
            given.append(number)

    def correct():
        for number in range(10_000):
            store.give("p", f"label {number}", "ann")

    with pytest.raises(UsageError, match=r"full.*free some space") as raised:
        log()
    assert "\n" not in str(raised.value)
    there = {p.id for p in FeedbackStore(path).predictions()}
    assert there == {"p", "q", *(f"r{n}" for n in given)}
    with pytest.raises(UsageError, match="full"):
        correct()
    count = store.count("feedback")
    assert count == store.corrections()[0].seq
    store._db.execute("PRAGMA max_page_count=100000")  # there is space again
    assert store.give("q", "b", "ann").status == "accepted"
    assert store.count("feedback") == count + 1


def test_threads_share_a_store(store):
    errors = []

    def work(name):
        try:
            for number in range(30):
                store.log_predictions([answer(f"{name}-{number}")])
                assert store.give(f"{name}-{number}", "b", name).status == "accepted"
                assert store.give("p", str(number), name).status in ("accepted", "replaced")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert store.count("feedback") == 4 * 60


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(CHILDREN), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def test_processes_that_begin_at_once_share_a_store(tmp_path, path):
    children = [start("write", tmp_path, name, 40) for name in "abcd"]
    assert [child.wait() for child in children] == [0] * 4
    store = FeedbackStore(path)
    assert store.count("predictions") == store.count("feedback") == 160
    assert len(store.corrections()) == 160


def test_what_was_acknowledged_outlives_kills(tmp_path, path):
    draw = random.Random(0)
    logged, given = set(), set()
    for _ in range(20):
        child = start("give", tmp_path)
        child.stdout.readline()  # it is at work
        time.sleep(draw.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        told = child.communicate()[0].splitlines()
        logged |= {line.split()[1] for line in told if line.startswith("logged p")}
        given |= {line.split()[1] for line in told if line.startswith("given p")}
    assert len(given) > 20
    store = FeedbackStore(path)
    there = {p.id: p.text for p in store.predictions(limit=100_000)}
    assert logged <= set(there)
    assert len(there) == store.count("predictions")
    corrected = [c.text for c in store.corrections()]
    assert {there[identity] for identity in given} <= set(corrected)
    assert len(corrected) == len(set(corrected)) == store.count("feedback")


def test_a_file_that_grows_says_nothing_again_that_was_replaced_since(store, tmp_path):
    file = tmp_path / "fixes.csv"
    file.write_text("prediction_id,label,source\np,b,ann\n")
    assert store.import_file(file).counts == {"accepted": 1}
    store.give("p", "c", source="ann")
    file.write_text("prediction_id,label,source\np,b,ann\nq,b,ann\n")
    assert store.import_file(file).counts == {"repeated": 1, "accepted": 1}
    assert resolved(store)[0][:2] == ("p", "c")
    file.write_text("prediction_id,label,source\np,b,ann\np,c,ann\n")
    for _ in range(3):
        assert store.import_file(file).counts == {"repeated": 2}


def test_a_source_that_cannot_be_printed_is_refused(store):
    with pytest.raises(UsageError, match="cannot be printed"):
        store.give("p", "b", source="\x1b[2Jevil")
