"""Corrections by file, whom they are trusted from, and what is held back until another says so."""

from __future__ import annotations

import json
import os
import time

import pytest

from lightning_evolve.evolution.collection import Feedback, collect, import_files
from lightning_evolve.evolution.feedback import FeedbackStore
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.processing import Processing
from lightning_evolve.evolution.records import Record


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite", create=True)
    yield journal
    journal.close()


@pytest.fixture
def store(tmp_path):
    store = FeedbackStore(tmp_path / "service.sqlite", trust={"expert": 3.0})
    yield store
    store.close()


def written(folder, name, *rows):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    long_ago = time.time() - 60
    os.utime(path, (long_ago, long_ago))


def test_files_of_corrections_become_records_once(tmp_path, journal, store):
    folder = tmp_path / "corrections"
    import_files(journal, store, folder)  # there is none yet
    bad = {"text": "no label"}
    written(folder, "a.jsonl", {"text": "one", "label": "x"}, bad, {"text": "two", "label": "y"})
    for _ in range(2):
        import_files(journal, store, folder)
    assert store.count("feedback") == 2
    (places,) = zip(*journal.execute("SELECT place FROM quarantine").fetchall(), strict=True)
    assert places == ("a.jsonl:2",)
    collect(journal, [Feedback(store)])
    assert {row["label"] for row in journal.execute("SELECT label FROM records")} == {"x", "y"}


def test_a_file_that_has_changed_is_read_again(tmp_path, journal, store):
    folder = tmp_path / "corrections"
    written(folder, "a.jsonl", {"text": "one", "label": "x"})
    import_files(journal, store, folder)
    written(folder, "a.jsonl", {"text": "one", "label": "x"}, {"text": "two", "label": "y"})
    import_files(journal, store, folder)
    assert store.count("feedback") == 2


def test_a_file_that_cannot_be_read_is_quarantined(tmp_path, journal, store):
    folder = tmp_path / "corrections"
    written(folder, "a.parquet", {"this": "is no parquet"})
    import_files(journal, store, folder)
    assert journal.execute("SELECT count(*) FROM quarantine").fetchone()[0] == 1


def test_who_is_trusted_more_prevails(tmp_path, journal, store):
    folder = tmp_path / "corrections"
    voices = [("expert", "x"), ("somebody", "y"), ("another", "y")]
    rows = [{"text": "one", "label": label, "source": source} for source, label in voices]
    written(folder, "a.jsonl", *rows)
    import_files(journal, store, folder)
    collect(journal, [Feedback(store)])
    ((label, weight),) = journal.execute("SELECT label, weight FROM records").fetchall()
    assert (label, weight) == ("x", 3.0)


@pytest.mark.parametrize(("source", "status"), [("other", "new"), ("mob", "held")])
def test_what_is_held_back_is_new_where_another_source_says_the_same(journal, source, status):
    with journal.writing():
        journal.ingest([Record(0.0, "mob", "one", "x")])
    Processing().process(journal)
    with journal.writing():
        journal.execute("UPDATE records SET status = 'held', generation = 3")
        journal.ingest([Record(1.0, source, "one", "x")])
    found = journal.execute("SELECT status, generation FROM records").fetchall()
    assert [tuple(row) for row in found] == [(status, 3 if status == "held" else None)]
