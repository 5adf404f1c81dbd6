import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lightning_evolve.data.cache import Cache
from lightning_evolve.data.docstrings import docstrings
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution import collection
from lightning_evolve.evolution.collection import (
    Bad,
    Dataset,
    Feedback,
    Phase,
    Planned,
    Read,
    Source,
    WatchedFolder,
    collect,
)
from lightning_evolve.evolution.feedback import FeedbackStore, Prediction
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.records import Record

CHILDREN = Path(__file__).with_name("children.py")


def texts(journal):
    return [tuple(row) for row in journal.execute("SELECT text, label FROM records ORDER BY seq")]


def quarantine(journal):
    return [
        tuple(row) for row in journal.execute("SELECT place, reason FROM quarantine ORDER BY seq")
    ]


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def gather(journal, inbox):
    def gather(**options):
        folder = WatchedFolder(str(inbox), **{"settle_seconds": 0, **options})
        return collect(journal, [folder])

    return gather


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


# ------------------------------------------------------------------------------------- folders


def test_all_formats_by_name_and_in_order(journal, inbox, gather):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (inbox / "1.csv").write_bytes(b'\xef\xbb\xbftext,label\n"one, ""two""\nlines",a\nthree,\n')
    (inbox / "2.TSV").write_text("intent\tutterance\nb\tfour\n")
    (inbox / "3.jsonl").write_text(
        '{"text": "five\u2028", "label": 1}\n\n{"text": "six"}', encoding="utf-8"
    )
    (inbox / "4.csv.gz").write_bytes(gzip.compress(b"text,label\nseven,c\n"))
    (inbox / "5.jsonl.gz").write_bytes(gzip.compress(b'{"text": "eight", "label": true}\n'))
    parquet.write_table(pa.table({"text": ["nine"], "label": [2]}), inbox / "6.parquet")
    collected = gather()
    assert texts(journal) == [
        ('one, "two" lines', "a"),
        ("three", None),
        ("four", "b"),
        ("five", "1"),
        ("six", None),
        ("seven", "c"),
        ("eight", "True"),
        ("nine", "2"),
    ]
    assert sum(collected.added.values()) == 8
    assert not quarantine(journal)


BAD_CSV = [
    (b"only one", "it has 1 fields, the header 2"),
    (b"a,b,c", "it has 3 fields, the header 2"),
    (b",a", "it has no text"),
    (b"  ,a", "it has no text"),
    (b"\xff\xfe,a", "it is not in UTF-8"),
    (b'"never closed,a', "its double quotes do not match"),
    (b'"closed" twice",a', "its double quotes do not match"),
    (b"x" * 1_000_001 + b",a", "it is longer than 1000000 bytes"),
    (b"x," + b"l" * 201, "the label has more than 200 characters"),
]
BAD_JSONL = [
    (b"{", "it is no JSON"),
    (b"[1]", "it is no JSON object"),
    (b'"text"', "it is no JSON object"),
    (b"[" * 100_000, "it is no JSON"),
    (b"{}", "it has no text"),
    (b'{"text": null}', "it has no text"),
    (b'{"text": "", "label": "a"}', "it has no text"),
    (b'{"text": 3}', "the text is no string"),
    (b'{"text": ["a"]}', "the text is no string"),
    (b'{"text": "\xff"}', "it is not in UTF-8"),
    (b'{"text": "\\ud800"}', "the text is no valid Unicode"),
    (b'{"text": "a", "label": "\\ud800"}', "the label is no valid Unicode"),
    (b'{"text": "a", "label": {}}', "the label is neither a name nor a number"),
    (b'{"text": "a", "time": "noon"}', "the time is neither in seconds since 1970 nor as in"),
    (b'{"text": "a", "time": 1700000000000}', "the time is neither in seconds since 1970"),
    (b'{"text": "a", "time": -1}', "the time is neither in seconds since 1970"),
    (b'{"text": "a", "time": NaN}', "the time is neither in seconds since 1970"),
    (b'{"text": "' + b"x" * 1_000_001 + b'"}', "it is longer than 1000000 bytes"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_CSV)
def test_a_bad_row_of_csv_costs_itself_only(journal, inbox, gather, line, reason):
    around = [b"text,label", b"first,a", line, b"last,b", b'"quoted, ""too""",b', b""]
    (inbox / "x.csv").write_bytes(b"\n".join(around))
    collected = gather()
    assert texts(journal) == [("first", "a"), ("last", "b"), ('quoted, "too"', "b")]
    assert quarantine(journal) == [("x.csv:3", reason)]
    assert sum(collected.quarantined.values()) == 1
    assert not sum(gather().quarantined.values())


@pytest.mark.parametrize(("line", "reason"), BAD_JSONL)
def test_a_bad_row_of_jsonl_costs_itself_only(journal, inbox, gather, line, reason):
    good = b'{"text": "good %d", "label": "a"}'
    (inbox / "x.jsonl").write_bytes(b"\n".join([good % 1, line, good % 2]))
    gather()
    assert texts(journal) == [("good 1", "a"), ("good 2", "a")]
    [(place, found)] = quarantine(journal)
    assert place == "x.jsonl:2"
    assert found.startswith(reason)


def test_a_quote_that_is_never_closed_costs_its_line_in_any_place(journal, inbox, gather):
    rows = [f"text {n},a" for n in range(3000)]
    rows[0] = '"' + rows[0]
    rows[1500] = '"' + rows[1500]
    rows[2999] = '"' + rows[2999]
    (inbox / "x.csv").write_text("\n".join(["text,label", *rows]))
    gather()
    assert [place for place, _ in quarantine(journal)] == ["x.csv:2", "x.csv:1502", "x.csv:3001"]
    assert len(texts(journal)) == 2997


def test_invalid_strings_of_parquet_cost_their_row(journal, inbox, gather):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    data = pa.array([b"good", b"\xff\xfe", b"too"]).cast(pa.binary())
    broken = pa.StringArray.from_buffers(3, data.buffers()[1], data.buffers()[2])
    parquet.write_table(pa.table({"text": broken, "label": ["a", "a", "b"]}), inbox / "x.parquet")
    gather()
    assert texts(journal) == [("good", "a"), ("too", "b")]
    assert quarantine(journal) == [("x.parquet:2", "the text is no valid Unicode")]


def test_a_truncated_file_is_quarantined_and_read_when_it_is_whole(journal, inbox, gather):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["one"], "label": ["a"]}), inbox / "x.parquet")
    whole = (inbox / "x.parquet").read_bytes()
    packed = gzip.compress(("text,label\n" + "\n".join(f"{n},a" for n in range(9))).encode())
    (inbox / "x.parquet").write_bytes(whole[:-20])
    (inbox / "y.csv.gz").write_bytes(packed[:-12])
    assert sum(gather().quarantined.values()) == 2
    assert [place for place, _ in quarantine(journal)] == ["x.parquet", "y.csv.gz"]
    assert not sum(gather().quarantined.values())
    (inbox / "x.parquet").write_bytes(whole)
    (inbox / "y.csv.gz").write_bytes(packed)
    gather()
    assert texts(journal).count(("one", "a")) == 1
    assert len(texts(journal)) == 10


@pytest.mark.parametrize("content", ["words,class\nx,a\n", "sentence2\nx\n"])
def test_a_table_without_the_column_is_one_line_of_quarantine(journal, inbox, gather, content):
    (inbox / "x.csv").write_text(content * 50)
    gather()
    [(place, reason)] = quarantine(journal)
    assert place == "x.csv"
    assert "has no column 'text': set text_column" in reason


def test_a_named_label_column_has_to_be_there_and_columns_can_be_named(journal, inbox, gather):
    (inbox / "x.csv").write_text("body,kind,at\nhello,a,1970-01-02T00:00:00Z\nyou,b,0\n")
    gather(text_column="body", label_column="sort")
    assert "set label_column" in quarantine(journal)[0][1]
    (inbox / "x.csv").write_text("body,kind,at\nhello,a,1970-01-02T00:00:00Z\nyou,b,0\n\n")
    gather(text_column="body", label_column="kind", time_column="at", trust=2.0)
    rows = journal.execute("SELECT text, label, time, weight FROM records").fetchall()
    assert [tuple(r) for r in rows] == [("hello", "a", 86400.0, 2.0), ("you", "b", 0.0, 2.0)]


def test_hidden_temporary_and_unsettled_files_wait(journal, inbox, gather):
    for name in (".x.csv", "_x.csv", "x.csv.part", "x.csv.tmp", "x.csv~", "x.txt"):
        (inbox / name).write_text(f"text,label\n{name},a\n")
    (inbox / "sub.csv").mkdir()
    (inbox / "x.csv").write_text("text,label\nx,a\n")
    gather(settle_seconds=60)
    assert texts(journal) == []
    os.utime(inbox / "x.csv", (0, time.time() - 61))
    gather(settle_seconds=60)
    assert texts(journal) == [("x", "a")]
    (inbox / "x.csv.part").rename(inbox / "y.csv")
    gather()
    assert texts(journal) == [("x", "a"), ("x.csv.part", "a")]


def test_a_file_that_grows_or_is_replaced_is_read_again(journal, inbox, gather):
    path = inbox / "x.jsonl"
    path.write_text('{"text": "one", "label": "a"}\n{"text": "tw')
    gather()
    assert texts(journal) == [("one", "a")]
    path.write_text('{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n')
    collected = gather()
    assert sum(collected.repeated.values()) == 1
    assert texts(journal) == [("one", "a"), ("two", "b")]
    status = path.stat()
    path.write_text('{"text": "one", "label": "a"}\n{"text": "six", "label": "b"}\n')
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as large and as old as before
    gather()
    assert texts(journal)[-1] == ("six", "b")
    assert path.read_text()  # files stay where they are


def test_a_file_that_has_not_changed_is_not_read_again(journal, inbox, gather, monkeypatch):
    (inbox / "x.csv").write_text("text,label\nx,a\n")
    gather()
    os.utime(inbox / "x.csv")
    assert not sum(gather().repeated.values())  # touched: its digest tells that it is the same
    monkeypatch.setattr(collection, "_digest", lambda path: pytest.fail("read again"))
    gather()


def test_an_unreadable_file_is_told_and_read_when_it_can_be(journal, inbox, gather, monkeypatch):
    path = inbox / "x.csv"
    path.write_text("text,label\nx,a\n")
    digest = collection._digest

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(collection, "_digest", refused)
    gather()
    assert not sum(gather().quarantined.values())
    assert quarantine(journal) == [("x.csv", "it cannot be read (Permission denied)")]
    monkeypatch.setattr(collection, "_digest", digest)
    gather()
    assert texts(journal) == [("x", "a")]


def test_an_empty_file_is_nothing(journal, inbox, gather):
    for name in ("x.csv", "y.jsonl"):
        (inbox / name).write_text("")
    gather()
    assert not texts(journal)
    assert not quarantine(journal)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"trust": 0.0}, "trust is 0.0"), ({"settle_seconds": -1.0}, "settle_seconds is -1.0")],
)
def test_folder_arguments(options, match):
    with pytest.raises(UsageError, match=match):
        WatchedFolder("x", **options)


def test_a_folder_that_is_missing(journal, tmp_path):
    with pytest.raises(UsageError, match=r"nowhere' cannot be read \(No such file"):
        collect(journal, [WatchedFolder(str(tmp_path / "nowhere"))])


def test_reading_goes_on_within_a_file(journal, inbox, monkeypatch):
    monkeypatch.setattr(collection, "CHUNK", 10)
    for name in ("a", "b"):
        rows = [json.dumps({"text": f"{name} {n}", "label": "a"}) for n in range(25)]
        (inbox / f"{name}.jsonl").write_text("\n".join(rows))
    folder = WatchedFolder(str(inbox), settle_seconds=0)
    whole = [r.text for chunk in folder.read(None) for r in chunk.records]
    assert whole == [f"{name} {n}" for name in "ab" for n in range(25)]
    for stop in range(5):
        position, read = None, []
        for _, chunk in zip(range(stop + 1), folder.read(None), strict=False):
            read += chunk.records
            position = json.loads(json.dumps(chunk.position))
        read += [r for chunk in folder.read(position) for r in chunk.records]
        assert [r.text for r in read] == whole


# ------------------------------------------------------------------------------------ datasets


def test_a_dataset_is_read_once_in_its_order(journal, tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "CHUNK", 2)
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


# --------------------------------------------------------------------------------------- plans


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.csv"
    rows = [f"{name} {n},{name}" for n in range(20) for name in ("ant", "bee", "cat", "dog")]
    path.write_text("\n".join(["text,label", *rows, "ant 0,ant", "twice,ant", "twice,bee"]))
    return str(path)


DRIFT = [
    Phase(2, 6, {"up": ["ant", "bee"], "down": ["cat"]}),
    Phase(2, 6, {"up": ["cat"], "down": ["ant", "dog"]}),
    Phase(1, 4, ["ant", "dog"]),
]


def test_a_plan_is_a_function_of_its_seed_and_repeats_no_row(corpus):
    plan = Planned(corpus, DRIFT, seed=1)
    chunks = list(plan.read(None))
    assert chunks == list(Planned(corpus, DRIFT, seed=1).read(None))
    assert chunks != list(Planned(corpus, DRIFT, seed=2).read(None))
    assert [chunk.batch for chunk in chunks] == [0, 1, 2, 3, 4]
    assert [plan.phase(chunk.batch) for chunk in chunks] == [0, 0, 1, 1, 2]
    assert plan.batches == 5
    found = [r.text for chunk in chunks for r in chunk.records]
    assert len(found) == len(set(found)) == 28
    assert "twice" not in found
    for chunk in chunks:
        members = DRIFT[plan.phase(chunk.batch)].members
        counts = Counter(r.label for r in chunk.records)
        assert set(counts.values()) == {len(chunk.records) // 2}
        for record in chunk.records:
            assert record.text.split()[0] in members[record.label]
            assert int(record.time // collection.DAY) == chunk.batch
    assert {r.text.split()[0] for r in chunks[0].records if r.label == "up"} == {"ant", "bee"}


def test_the_mixture_of_a_label_does_not_drift_within_a_phase(tmp_path):
    rows = [f"{name} {n},{name}" for name, most in (("ant", 90), ("bee", 30)) for n in range(most)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *rows]))
    plan = Planned(str(tmp_path / "x.csv"), [Phase(3, 40, {"up": ["ant", "bee"]})])
    for chunk in plan.read(None):
        assert 4 <= sum(r.text.startswith("bee") for r in chunk.records) <= 16


def test_one_batch_a_generation_also_over_kills(journal, corpus):
    plan = Planned(corpus, DRIFT)
    everything = [r.text for chunk in plan.read(None) for r in chunk.records]
    assert sum(collect(journal, [plan], batches=1).added.values()) == 6
    assert not collect(journal, [plan], batches=1).added
    assert sum(collect(journal, [plan], batches=3).added.values()) == 12
    assert journal.position(plan.name) == 3
    collect(journal, [plan])
    assert [text for text, _ in texts(journal)] == everything
    assert not collect(journal, [plan]).added


@pytest.mark.parametrize(
    ("phases", "match"),
    [
        ([], "phases is empty"),
        ([Phase(0, 5, ["ant"])], "phase 1 has 0 generations of 5 rows"),
        ([Phase(1, 5, [])], "phase 1 has a label without classes"),
        ([Phase(1, 5, {"up": []})], "phase 1 has a label without classes"),
        ([Phase(1, 5, {"up": ["ant"], "down": ["ant"]})], "phase 1 has class 'ant' twice"),
        ([Phase(1, 5, ["ant"]), Phase(1, 5, ["elk"])], "phase 2 names class 'elk'"),
        ([Phase(2, 11, ["ant"])], "phase 1 asks for more rows of label 'ant'"),
        ([Phase(1, 15, ["ant"]), Phase(1, 6, {"x": ["ant"]})], "phase 2 asks for more rows of l"),
    ],
)
def test_plans_that_make_no_sense(corpus, phases, match):
    with pytest.raises(UsageError, match=match):
        list(Planned(corpus, phases).read(None))


def test_the_embedded_corpus_has_enough_for_a_plan(tmp_path):
    names = sorted(set(docstrings(Cache(tmp_path)).labels))[:6]
    phases = [Phase(4, 40, {"a": names[:3], "b": names[3:]}), Phase(1, 10, names)]
    plan = Planned("docstrings", phases, cache_dir=str(tmp_path))
    assert [len(chunk.records) for chunk in plan.read(None)] == [40] * 4 + [10]


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
