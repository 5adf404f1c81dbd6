from __future__ import annotations

from collections import Counter

import pytest

from lightning_evolve.data.held_out_classes import hold_out_classes
from lightning_evolve.data.held_out_rows import Sizes, hold_out_rows
from lightning_evolve.data.rows import Rows, concatenate
from lightning_evolve.data.splits import check_fractions, sample_rows, split_classes
from lightning_evolve.errors import UsageError

THIRDS = (0.5, 0.25, 0.25)
ALL = Sizes(None, None, None, validation_fraction=0.1, test_fraction=0.2)


def classes_of(arranged):
    return {n: {arranged.rows.labels[r] for r in r_.tolist()} for n, r_ in arranged.splits.items()}


def texts_of(arranged):
    return {n: {arranged.rows.texts[r] for r in r_.tolist()} for n, r_ in arranged.splits.items()}


def assert_nothing_shared(parts):
    assert sum(map(len, parts.values())) == len(set().union(*parts.values()))


@pytest.mark.parametrize("count", [3, 10, 69, 150])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_classes_gives_each_class_once_in_the_asked_shares(count, seed):
    parts = split_classes(range(count), (0.5, 0.2, 0.3), seed)
    assert sorted(c for part in parts.values() for c in part) == list(range(count))
    for part, share in zip(parts.values(), (0.5, 0.2, 0.3), strict=True):
        assert abs(len(part) - share * count) <= 1
    assert parts == split_classes(range(count), (0.5, 0.2, 0.3), seed)
    assert count < 10 or parts != split_classes(range(count), (0.5, 0.2, 0.3), seed + 1)


@pytest.mark.parametrize(
    "shares", [(0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.5, 0.5), (1.2, -0.1, -0.1)]
)
def test_bad_shares(shares):
    with pytest.raises(UsageError, match=r"class_fractions are \[.*add up to 1"):
        check_fractions(shares)


def test_sample_rows_keeps_the_proportions():
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    drawn, rest = sample_rows(labels, 20, seed=3)
    assert Counter(labels[n] for n in drawn) == {"a": 12, "b": 6, "c": 2}
    assert sorted(drawn + rest) == list(range(100))
    assert sample_rows(labels, 20, seed=3)[0] == drawn
    assert sample_rows(labels, 20, seed=4)[0] != drawn
    assert sample_rows(labels, 100, seed=3) == (list(range(100)), [])


# Held-out classes


@pytest.mark.parametrize("seed", range(5))
def test_no_class_and_no_text_is_in_two_splits(make_rows, seed):
    rows = make_rows(classes=12, each=6)
    # The same texts again in the source's other split.
    again = Rows(rows.labels, texts=[f" {text} " for text in rows.texts])
    arranged = hold_out_classes({"train": rows, "test": again}, 2, 6, THIRDS, seed)
    assert_nothing_shared(classes_of(arranged))
    assert_nothing_shared(texts_of(arranged))
    assert [len(c) for c in classes_of(arranged).values()] == [6, 3, 3]
    assert len(arranged.rows) == 72
    assert "72 duplicate" in arranged.notes[0]


def test_contradictions_and_small_classes_are_dropped_and_counted(make_rows):
    rows = make_rows(classes=8, each=6)
    small = make_rows(classes=2, each=3, first_class=20)
    wrong = Rows(["class01"], texts=[rows.texts[0]])
    source = {
        "train": rows,
        "test": Rows(small.labels + wrong.labels, texts=small.texts + wrong.texts),
    }
    arranged = hold_out_classes(source, 2, 5, (0.5, 0.25, 0.25), 0)
    assert arranged.notes == [
        "0 empty, 0 duplicate and 2 contradictorily labelled rows dropped",
        "2 classes with fewer than 5 rows dropped",
    ]
    assert arranged.class_names == tuple(f"class{c:02}" for c in range(8))
    assert len(arranged.rows) == 47


def test_splits_that_share_no_class_are_kept(make_rows):
    source = {
        "train": make_rows(classes=2, each=4, first_class=4),
        "validation": make_rows(classes=3, each=4, first_class=0),
        "test": make_rows(classes=2, each=4, first_class=9),
    }
    arranged = hold_out_classes(source, 2, 4, THIRDS, seed=1)
    assert classes_of(arranged) == {n: set(rows.labels) for n, rows in source.items()}
    # A class that is too small goes, the others stay where they are.
    small = make_rows(classes=1, each=2, first_class=30)
    source["train"] = concatenate([source["train"], small])
    kept = hold_out_classes(source, 2, 4, THIRDS, seed=1)
    assert classes_of(kept) == classes_of(arranged)
    # However the classes are shared out, the rows are the same ones in the same order.
    other = {n: source[m] for n, m in zip(source, ("test", "train", "validation"), strict=True)}
    moved = hold_out_classes(other, 2, 4, THIRDS, seed=1)
    assert moved.rows == kept.rows
    assert classes_of(moved)["train"] == classes_of(kept)["test"]
    # With one class in common they are pooled.
    source["test"] = make_rows(classes=6, each=4, first_class=4)
    arranged = hold_out_classes(source, 2, 4, THIRDS, seed=1)
    assert classes_of(arranged)["test"] != set(source["test"].labels)
    assert_nothing_shared(classes_of(arranged))


def test_too_few_rows_or_classes_say_how_many_there_are(make_rows):
    rows = make_rows(classes=9, each=6)
    with pytest.raises(UsageError, match=r"0 of 9 classes have the 20 rows.*largest has 6"):
        hold_out_classes({"train": rows}, 5, 20, THIRDS, 0)
    with pytest.raises(UsageError, match=r"9 of 9 classes.* 10 classes"):
        hold_out_classes({"train": rows}, 10, 5, THIRDS, 0)
    with pytest.raises(UsageError, match=r"validation split has 3 of 9 classes, fewer than ways=4"):
        hold_out_classes({"train": rows}, 4, 5, THIRDS, 0)


# Held-out rows


def test_splits_that_are_missing_come_out_of_the_training_rows(make_rows):
    arranged = hold_out_rows({"train": make_rows(classes=4, each=50)}, ALL, seed=0)
    assert {n: len(r) for n, r in arranged.splits.items()} == {
        "train": 140,
        "validation": 20,
        "test": 40,
    }
    assert_nothing_shared(texts_of(arranged))
    labels = [arranged.rows.labels[r] for r in arranged.splits["test"].tolist()]
    assert set(Counter(labels).values()) == {10}
    assert arranged.notes == []


def test_a_source_keeps_its_splits_and_the_held_out_side_keeps_shared_texts():
    source = {
        "train": Rows(["a", "b", "a", "b", "a"], texts=["1", "2", "3", "4", "5"]),
        "validation": Rows(["a", "b", "a"], texts=["3", " 6", "7"]),
        "test": Rows(["b", "b"], texts=["4", "7"]),
    }
    arranged = hold_out_rows(source, ALL, seed=0)
    assert texts_of(arranged) == {
        "train": {"1", "2", "5"},
        "validation": {"3", "6"},
        "test": {"4", "7"},
    }
    assert arranged.notes == [
        "validation: dropped 1 of its rows, whose content is held out too",
        "train: dropped 2 of its rows, whose content is held out too",
    ]


def test_as_many_rows_as_are_asked_for(make_rows):
    rows = make_rows(classes=2, each=100)
    sizes = ALL._replace(train=50, validation=10, test=6)
    arranged = hold_out_rows({"train": rows}, sizes, seed=0)
    assert {n: len(r) for n, r in arranged.splits.items()} == {
        "train": 50,
        "validation": 10,
        "test": 6,
    }
    labels = [arranged.rows.labels[r] for r in arranged.splits["train"].tolist()]
    assert set(Counter(labels).values()) == {25}
    with pytest.raises(UsageError, match=r"500 rows of the train split .* it has 140"):
        hold_out_rows({"train": rows}, ALL._replace(train=500), seed=0)


def test_a_label_that_training_lacks(make_rows):
    train = make_rows(classes=3, each=5)
    for name in ("validation", "test"):
        source = {"train": train, name: Rows(["odd"], texts=["never seen"])}
        with pytest.raises(UsageError, match=rf"label 'odd' is in the {name} split"):
            hold_out_rows(source, ALL, seed=0)


def test_one_class_or_no_row_is_left():
    with pytest.raises(UsageError, match=r"the one class 'a'"):
        hold_out_rows({"train": Rows(["a"] * 9, texts=list("123456789"))}, ALL, seed=0)
    source = {"train": Rows(["a", "b"], texts=["1", "2"]), "test": Rows(["a"], texts=[" "])}
    with pytest.raises(UsageError, match=r"the test split has no rows left"):
        hold_out_rows(source, ALL, seed=0)
