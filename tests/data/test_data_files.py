from __future__ import annotations

import csv
import gzip
import io
import json

import numpy as np
import pandas as pd
import pytest

from lightning_evolve.data.files import read_path, read_texts
from lightning_evolve.data.rows import Rows
from lightning_evolve.data.sources import load
from lightning_evolve.errors import UsageError

TEXTS = [
    "plain",
    'with, comma and "quotes"',
    "two\nlines",
    "caf\u00e9 \u2028 \U0001f600",
    "x" * 200_000,
]
LABELS = ["a", "b", "a", "b", "a"]


def as_csv(texts=TEXTS, labels=LABELS):
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerows([("label", "text"), *zip(labels, texts, strict=True)])
    return file.getvalue().encode()


def objects(texts=TEXTS, labels=LABELS):
    return [{"text": t, "label": name} for t, name in zip(texts, labels, strict=True)]


def as_json(texts=TEXTS, labels=LABELS):
    return json.dumps(objects(texts, labels)).encode()


def as_jsonl(texts=TEXTS, labels=LABELS):
    lines = [json.dumps(item, ensure_ascii=False) for item in objects(texts, labels)]
    return "\n".join(lines).encode()


def write_parquet(path, texts=TEXTS, labels=LABELS):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": texts, "label": labels}), path)


CONTENT = {"csv": as_csv, "json": as_json, "jsonl": as_jsonl}


@pytest.fixture
def read(cache):
    return lambda source, **options: load(str(source), cache=cache, **options)


@pytest.mark.parametrize("suffix", CONTENT)
@pytest.mark.parametrize("packed", [False, True])
def test_every_format_gives_the_same_rows(read, tmp_path, suffix, packed):
    path = tmp_path / f"data.{suffix}{'.gz' if packed else ''}"
    content = CONTENT[suffix]()
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read(path) == {"train": Rows(LABELS, texts=TEXTS)}


def test_parquet(read, tmp_path):
    write_parquet(tmp_path / "data.parquet")
    assert read(tmp_path / "data.parquet") == {"train": Rows(LABELS, texts=TEXTS)}


def test_a_byte_order_mark_is_no_part_of_the_first_column(read, tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbftext,label\nhello,a\n")
    assert read(tmp_path / "x.csv")["train"].texts == ["hello"]


def test_labels_that_are_numbers_become_names_and_columns_have_any_name(read, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"body": "one", "y": 1}\n\n{"body": null, "y": 0}\n')
    rows = read(tmp_path / "x.jsonl", text_column="body", label_column="y")["train"]
    assert rows == Rows(["1", "0"], texts=["one", ""])


def test_a_folder_of_splits(read, tmp_path):
    (tmp_path / "train.csv").write_bytes(as_csv(["t"], ["a"]))
    (tmp_path / "dev.jsonl.gz").write_bytes(gzip.compress(as_jsonl(["v"], ["a"])))
    write_parquet(tmp_path / "test-00000-of-00002.parquet", ["w"], ["a"])
    write_parquet(tmp_path / "test-00001-of-00002.parquet", ["x"], ["b"])
    (tmp_path / "oos_train.csv").write_bytes(as_csv(["no split"], ["z"]))
    (tmp_path / "README").write_text("not data")
    assert read(tmp_path) == {
        "train": Rows(["a"], texts=["t"]),
        "validation": Rows(["a"], texts=["v"]),
        "test": Rows(["a", "b"], texts=["w", "x"]),
    }


def test_a_folder_of_other_files_is_all_training_data(read, tmp_path):
    (tmp_path / "b.csv").write_bytes(as_csv(["second"], ["b"]))
    (tmp_path / "a.json").write_bytes(as_json(["first"], ["a"]))
    assert read(tmp_path) == {"train": Rows(["a", "b"], texts=["first", "second"])}


def write_classes(folder, texts):
    for label, text in texts:
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{text}.txt").write_text(text)


def test_a_folder_with_one_subfolder_a_class(read, tmp_path):
    write_classes(tmp_path, [("neg", "bad"), ("pos", "good"), ("pos", "best")])
    assert read(tmp_path) == {"train": Rows(["neg", "pos", "pos"], texts=["bad", "best", "good"])}


def test_folders_of_splits_with_one_subfolder_a_class(read, tmp_path):
    write_classes(tmp_path / "train", [("neg", "bad"), ("pos", "good")])
    write_classes(tmp_path / "test", [("neg", "worse")])
    assert read(tmp_path) == {
        "train": Rows(["neg", "pos"], texts=["bad", "good"]),
        "test": Rows(["neg"], texts=["worse"]),
    }


def test_npz_of_images(read, tmp_path):
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    np.savez(tmp_path / "one.npz", x=images, y=np.array([3, 5]), drawer=np.array([1]))
    (rows,) = read(tmp_path / "one.npz").values()
    assert rows.labels == ["3", "5"]
    assert np.array_equal(rows.images, images)
    np.savez_compressed(
        tmp_path / "two.npz", x_train=images, y_train=[0, 1], x_test=images[:1], y_test=["z"]
    )
    splits = read(tmp_path / "two.npz")
    assert {name: rows.labels for name, rows in splits.items()} == {
        "train": ["0", "1"],
        "test": ["z"],
    }


def test_classes_keeps_only_these(read, tmp_path):
    (tmp_path / "x.csv").write_bytes(as_csv(["1", "2", "3"], ["a", "b", "c"]))
    assert read(tmp_path / "x.csv", classes=["c", "a"])["train"] == Rows(
        ["a", "c"], texts=["1", "3"]
    )
    with pytest.raises(UsageError, match=r"'d'.*choose from a, b, c"):
        read(tmp_path / "x.csv", classes=["a", "d"])


def test_read_texts(tmp_path):
    (tmp_path / "x.txt").write_text("first\n\nthird\n")
    (tmp_path / "x.csv").write_text("id,body\n1,hello\n")
    lines = read_texts(str(tmp_path / "x.txt"), "text")
    assert lines == ["first", "", "third"]
    assert read_texts(str(tmp_path / "x.csv"), "body") == ["hello"]
    with pytest.raises(UsageError, match=r"no column 'text'.*text_column to one of id, body"):
        read_texts(str(tmp_path / "x.csv"), "text")
    with pytest.raises(UsageError, match=r"predict_source '.*y.txt' is no file"):
        read_texts(str(tmp_path / "y.txt"), "text")


BAD = {
    "missing": (None, "absent.csv", r"'.*absent.csv' does not exist"),
    "empty": (b"", "x.csv", r"x.csv' is empty"),
    "only a header": (b"text,label\n", "x.csv", r"x.csv' has no rows"),
    "empty gzip": (gzip.compress(b""), "x.jsonl.gz", r"x.jsonl.gz' is empty"),
    "empty list": (b"[]", "x.json", r"x.json' has no rows"),
    "no text column": (b"body,label\nx,a\n", "x.csv", r"no column 'text'.*one of body, label"),
    "no label column": (b'[{"text": "x"}]', "x.json", r"no column 'label'.*label_column to one of"),
    "no label": (b"text,label\nx,a\ny,\n", "x.csv", r"row 2 of .* has no label"),
    "too many fields": (b"text,label\nx,a\nwell, yes,b\n", "x.csv", r"more fields in line 3"),
    "a column twice": (b"text,label,text\nx,a,y\n", "x.csv", r"two columns called 'text'"),
    "a list for a text": (b'[{"text": ["x"], "label": "a"}]', "x.json", r"row 1 .* for a text"),
    "open quote": (b'text,label\n"x,a\ny,b\n', "x.csv", r"no csv near line"),
    "Latin-1": (b"text,label\nx,a\ncaf\xe9,b\n", "x.csv", r"not UTF-8: byte 0xe9 in line 3"),
    "UTF-16": ("text,label\nx,a\n".encode("utf-16"), "x.csv", r"not UTF-8: byte 0xff in line 1"),
    "cut gzip": (gzip.compress(as_jsonl())[:-40], "x.jsonl.gz", r"no whole gzip file"),
    "no gzip": (b"text,label\nx,a\n", "x.csv.gz", r"no whole gzip file"),
    "bad JSON": (b'[{"text": ', "x.json", r"x.json' is no JSON"),
    "bad line": (b'{"text": "x", "label": "a"}\n{"text"\n', "x.jsonl", r"no JSON object in line 2"),
    "empty JSON": (b"", "x.json", r"^'.*x.json' is empty: fill"),
    "no objects": (b'["x", "y"]', "x.json", r"one object a row"),
    "no list": (b'{"text": "x"}', "x.json", r"one object a row"),
    "cut parquet": (b"PAR1 and then nothing", "x.parquet", r"no whole parquet file"),
    "packed parquet": (b"PAR1", "x.parquet.gz", r"none of the formats"),
    "text without labels": (b"a text\n", "x.txt", r"none of the formats.*\.csv"),
    "unknown format": (b"a,b", "x.tsv", r"none of the formats.*\.csv"),
    "cut npz": (b"PK\x03\x04", "x.npz", r"no whole npz file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files(read, tmp_path, case):
    content, name, message = BAD[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


BAD_ARRAYS = {
    "no images": ({"a": np.zeros(3)}, r"has no images.*x_train"),
    "no labels": ({"x": np.zeros((2, 4, 4), np.uint8)}, r"2 images and y is absent"),
    "too few labels": (
        {"x_test": np.zeros((2, 4, 4)), "y_test": np.zeros(1)},
        r"x_test .* y_test is of shape \[1\]",
    ),
    "no images but rows": (
        {"x": np.zeros((2, 8)), "y": np.zeros(2)},
        r"shape \[2, 8\]: give uint8",
    ),
    "other numbers": ({"x": np.zeros((2, 4, 4), np.int64), "y": np.zeros(2)}, r"is int64"),
    "objects": (
        {"x": np.array([{}, None]), "y": np.zeros(2)},
        r"no whole npz file of plain numbers",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_images(read, tmp_path, case):
    arrays, message = BAD_ARRAYS[case]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "x.npz")


def test_bad_folders(read, tmp_path):
    with pytest.raises(UsageError, match=r"has nothing to read.*\.csv"):
        read(tmp_path)
    (tmp_path / "notes").mkdir()
    with pytest.raises(UsageError, match=r"has no class.*subfolder"):
        read(tmp_path)
    (tmp_path / "test.csv").write_bytes(as_csv())
    with pytest.raises(UsageError, match=r"no train split, only test"):
        read(tmp_path)


def test_a_file_that_may_not_be_read(read, tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_bytes(as_csv())

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\)"):
        read(tmp_path / "x.csv")


def of(path):
    return read_path(path, "text", "label")


def test_labels_are_names_whatever_wrote_them(tmp_path):
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(["a", "a ", "caf\u00e9"])]
    rows.append({"text": "t9", "label": "cafe\u0301"})
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert of(tmp_path / "x.jsonl")["train"].labels == ["a", "a", "caf\u00e9", "caf\u00e9"]


@pytest.mark.parametrize("label", ["NaN", "[1, 2]", '{"a": 1}', "null", '"  "'])
def test_labels_that_are_none_are_refused(tmp_path, label):
    (tmp_path / "x.jsonl").write_text(f'{{"text": "t", "label": {label}}}')
    with pytest.raises(UsageError, match=r"row 1 of .* has "):
        of(tmp_path / "x.jsonl")


def test_lines_end_where_a_file_says_so(tmp_path):
    (tmp_path / "x.txt").write_bytes("one\u2028still one\r\ntwo\x0c\n\nfour\n".encode())
    lines = read_texts(str(tmp_path / "x.txt"), "text")
    assert lines == [
        "one\u2028still one",
        "two\x0c",
        "",
        "four",
    ]


def test_a_column_that_the_first_row_lacks_is_there(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "t"}\n{"text": "u", "label": "a"}')
    with pytest.raises(UsageError, match=r"row 1 of .* has no label"):
        of(tmp_path / "x.jsonl")


def test_json_that_is_too_deep_is_no_json(tmp_path):
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="is no JSON"):
        of(tmp_path / "x.json")


def test_a_folder_of_arrays_keeps_their_splits(tmp_path):
    images = np.zeros((2, 4, 4), np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", **{f"x_{split}": images, f"y_{split}": [0, 1]})
    found = of(tmp_path)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "test": 2}


def test_bytes_are_no_text(read, tmp_path):
    table = pd.DataFrame({"text": [b"one", b"two"], "label": ["a", "b"]})
    table.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UsageError, match=r"row 1 .* has \"b'one'\" for a text"):
        read(tmp_path / "x.parquet")


def test_a_subset_of_a_file_is_told_to_be_none(tmp_path, cache):
    (tmp_path / "x.csv").write_bytes(as_csv())
    with pytest.warns(UserWarning, match="subset 'plus' is for datasets on the hub"):
        load(str(tmp_path / "x.csv"), cache=cache, subset="plus")
    assert load("topics", cache=cache)
