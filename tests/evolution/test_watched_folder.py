"""A folder that is watched, as a source."""

import gzip
import json
import os
import time

import pytest

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.collection import (
    WatchedFolder,
    collect,
    watched_folder,
)
from tests.evolution.ingested import quarantine, texts


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
    monkeypatch.setattr(watched_folder, "_digest", lambda path: pytest.fail("read again"))
    gather()


def test_an_unreadable_file_is_told_and_read_when_it_can_be(journal, inbox, gather, monkeypatch):
    path = inbox / "x.csv"
    path.write_text("text,label\nx,a\n")
    digest = watched_folder._digest

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(watched_folder, "_digest", refused)
    gather()
    assert not sum(gather().quarantined.values())
    assert quarantine(journal) == [("x.csv", "it cannot be read (Permission denied)")]
    monkeypatch.setattr(watched_folder, "_digest", digest)
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
    monkeypatch.setattr(watched_folder, "CHUNK", 10)
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


def test_dates_that_python_does_not_know_cost_no_row(journal, inbox, gather):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    far = pa.array([2**55], pa.int64()).cast(pa.timestamp("ms"))
    parquet.write_table(pa.table({"text": ["t"], "label": ["a"], "ends": far}), inbox / "x.parquet")
    gather()
    assert texts(journal) == [("t", "a")]


def test_a_name_that_is_no_unicode_can_be_quarantined(journal, inbox, gather):
    name = os.fsdecode(b"caf\xe9.jsonl")
    try:
        (inbox / name).write_text('{"text": "t", "label": "a"}\n{"text": ""}\n')
    except OSError:
        pytest.skip("this file system takes no such names")
    gather()
    assert texts(journal) == [("t", "a")]
    assert [place for place, _ in quarantine(journal)] == [r"caf\udce9.jsonl:2"]


def test_numbers_with_a_gap_among_them_are_the_same_labels(journal, inbox, gather):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    labels = pa.array([1.0, None, 2.0])
    parquet.write_table(pa.table({"text": ["t", "u", "v"], "label": labels}), inbox / "x.parquet")
    gather()
    assert texts(journal) == [("t", "1"), ("u", None), ("v", "2")]
