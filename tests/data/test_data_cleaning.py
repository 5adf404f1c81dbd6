from __future__ import annotations

import unicodedata

import numpy as np

from lightning_evolve.data.cleaning import Dropped, clean, normalise
from lightning_evolve.data.rows import Rows


def test_each_reason_is_counted_and_the_first_of_duplicates_stays():
    texts = ["one", " ", "two", "one", "three\n", "three", "caf\u00e9", "cafe\u0301", ""]
    labels = ["a", "a", "b", "a", "a", "b", "a", "a", "b"]
    rows, dropped = clean(Rows(labels, texts=texts))
    assert rows.texts == ["one", "two", "caf\u00e9"]
    assert rows.labels == ["a", "b", "a"]
    assert dropped == Dropped(empty=2, duplicates=2, conflicts=2)


def test_texts_that_look_alike_become_the_same():
    rows, dropped = clean(Rows(["a"] * 3, texts=["\u00c5  x", "A\u030a\tx", "\u212b x"]))
    assert rows.texts == ["\u00c5 x"]
    assert unicodedata.is_normalized("NFC", rows.texts[0])
    assert dropped.duplicates == 2


def test_images_are_compared_by_content():
    images = np.zeros((4, 2, 2), np.uint8)
    images[1] = 1
    images[3] = 7
    rows, dropped = clean(Rows(["a", "b", "a", "c"], images=images))
    assert rows.images.tolist() == images[[0, 1, 3]].tolist()
    assert dropped == Dropped(duplicates=1)


def test_nothing_dropped_is_false():
    assert not clean(Rows(["a"], texts=["x"]))[1]


def test_half_of_an_emoji_is_replaced():
    assert normalise("a \ud83d b") == "a \ufffd b"
    assert normalise("a \U0001f600 b") == "a \U0001f600 b"
