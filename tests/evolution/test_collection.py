"""What all sources have in common, datasets and corrections as sources, and kills."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.collection import (
    Bad,
    Dataset,
    Feedback,
    Read,
    Source,
    collect,
)
from lightning_evolve.evolution.collection import dataset as dataset_source
from lightning_evolve.evolution.feedback import FeedbackStore, Prediction
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.records import Record
from tests.evolution.ingested import quarantine, texts

CHILDREN = Path(__file__).with_name("children.py")


class Given(Source):
    name = "given"

    def __init__(self, *chunks):
        self.chunks = chunks

    def read(self, position):
        done = position or 0
        for number, records in enumerate(self.chunks[done:], start=done + 1):
            yield Read(records, [], number)


# ------------------------------------------------------------------------------------- collect


def test_the_same_content_is_one_record_whatever_its_source(journal):
    first = Record(1.0, "a", "Fine. ", "good")
    again = Record(2.0, "b", " Fine.", "good")
    other = Record(3.0, "b", "Fine.", "bad")
    collected = collect(journal, [Given([first], [again, other])])
    assert (collected.added["given"], collected.repeated["given"]) == (2, 1)
    assert texts(journal) == [("Fine. ", "good"), ("Fine.", "bad")]


def test_a_chunk_is_there_with_its_position_or_not_at_all(journal):
    class Broken(Source):
        name = "broken"

        def read(self, position):
            yield Read([Record(0.0, "x", "one", "a")], [], 1)
            yield Read([Record(0.0, "x", "two", "a")], [Bad("x:1", "bad")], {1, 2})  # no JSON

    with pytest.raises(TypeError):
        collect(journal, [Broken()])
    assert texts(journal) == [("one", "a")]
    assert not quarantine(journal)
    assert journal.position("broken") == 1


def test_private_data_leaves_before_the_journal_and_is_counted_once(journal, tmp_path):
    records = [
        Record(0.0, "x", "mail ann@example.org", "a"),
        Record(0.0, "x", "mail ben@example.org or +44 20 7946 0958", "a"),
    ]
    collected = collect(journal, [Given(records, [records[0]])])
    assert collected.redactions == {"email": 2, "phone": 1}
    assert collect(journal, [Given(records, [records[0]], [records[1]])]).redactions == {}
    assert journal.state("redactions") == {"email": 2, "phone": 1}
    for file in tmp_path.iterdir():
        assert b"ann@" not in file.read_bytes()


def test_redaction_can_be_left_out(journal):
    collect(journal, [Given([Record(0.0, "x", "mail ann@example.org", "a")])], redact=False)
    assert texts(journal) == [("mail ann@example.org", "a")]


def test_two_sources_of_one_name(journal, tmp_path):
    with pytest.raises(UsageError, match="two sources are called 'given'"):
        collect(journal, [Given(), Given()])


# ------------------------------------------------------------------------------------ datasets


def test_a_dataset_is_read_once_in_its_order(journal, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_source, "CHUNK", 2)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "test.csv").write_text("text,label\nfour,a\n")
    (folder / "train.csv").write_text("text,label\none,a\n  ,b\ntwo,b\nthree,a\n")
    dataset = Dataset(str(folder))
    chunk = next(dataset.read(None))
    assert [r.text for r in chunk.records] == ["one"]
    rest = [r.text for c in dataset.read(chunk.position) for r in c.records]
    assert rest == ["two", "three", "four"]
    collect(journal, [dataset])
    assert [text for text, _ in texts(journal)] == ["one", "two", "three", "four"]
    assert quarantine(journal) == [("train:2", "it has no text")]
    (folder / "train.csv").unlink()
    assert not collect(journal, [dataset]).added  # it is not even looked for


def test_a_dataset_of_images(journal):
    with pytest.raises(UsageError, match="'digits' has images"):
        collect(journal, [Dataset("digits")])


# ------------------------------------------------------------------------------------ feedback


def test_corrections_become_records_and_the_last_word_counts(journal, tmp_path):
    store = FeedbackStore(tmp_path / "service.sqlite", trust={"ed": 2.0, "bot": 0.0})
    store.log_predictions([Prediction("p", "Some text", "a", 0.9, {"a": 0.9}, 0, 0.0)])
    source = Feedback(store)
    store.give("p", "b", "ann", 5.0)
    store.give("p", "b", "ed", 3.0)
    assert sum(collect(journal, [source]).added.values()) == 1
    rows = journal.execute("SELECT text, label, source, weight, time FROM records").fetchall()
    assert [tuple(r) for r in rows] == [("Some text", "b", "feedback:ann+ed", 3.0, 3.0)]
    assert not collect(journal, [source]).added
    store.log_predictions([Prediction("q", "Other text", "a", 0.9, {"a": 0.9}, 0, 0.0)])
    store.give("q", "c", "bot")
    assert not collect(journal, [source]).added  # it is not trusted at all
    assert journal.position("feedback") == 3


# --------------------------------------------------------------------------------------- kills


def run(task, folder):
    return subprocess.Popen(
        [sys.executable, str(CHILDREN), task, str(folder)], stdout=subprocess.PIPE, text=True
    )


def test_kills_lose_nothing_and_repeat_nothing(tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for name in "abc":
        rows = [json.dumps({"text": f"{name} text {n}", "label": "x"}) for n in range(2000)]
        rows.insert(1000, "{")
        (inbox / f"{name}.jsonl").write_text("\n".join(rows))
    store = FeedbackStore(tmp_path / "service.sqlite")
    for n in range(50):
        store.log_predictions([Prediction(f"p{n}", f"answer {n}", "x", 0.5, {}, 0, 0.0)])
        store.give(f"p{n}", "y", "ann")
    store.close()

    def there():
        with contextlib.suppress(UsageError):  # before there are tables
            journal = Journal(tmp_path / "journal.sqlite")
            try:
                return len(texts(journal))
            finally:
                journal.close()
        return 0

    draw = random.Random(0)
    started = time.monotonic()
    run("ingest", tmp_path / "none").wait()  # how long it takes to start
    start = time.monotonic() - started
    seen = []
    for number in range(16):
        before, child = there(), run("ingest", tmp_path)
        if number % 2:  # while it starts, or some time after
            time.sleep(start * draw.uniform(0.5, 1.2))
        else:
            while child.poll() is None and there() == before:
                time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.wait()
        seen.append(there())
    assert any(0 < count < 6050 for count in seen)  # some were hit in the middle
    child = run("ingest", tmp_path)
    assert child.communicate()[0] == "done\n"
    journal = Journal(tmp_path / "journal.sqlite")
    expected = [(f"{name} text {n}", "x") for name in "abc" for n in range(2000)]
    assert texts(journal) == [*expected, *((f"answer {n}", "y") for n in range(50))]
    assert [place for place, _ in quarantine(journal)] == [f"{n}.jsonl:1001" for n in "abc"]
