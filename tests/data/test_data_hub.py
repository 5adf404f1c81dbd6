from __future__ import annotations

import time

import numpy as np
import pytest

from lightning_evolve.data.hub import read_hub, rows_of
from lightning_evolve.data.rows import Rows
from lightning_evolve.errors import UsageError

datasets = pytest.importorskip("datasets")


def test_numbers_get_their_names_and_rows_without_a_label_are_left_out():
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    data = {
        "train": {"sentence": ["bad", None, "good", "?"], "label": [0, 0, 1, -1]},
        "validation": {"sentence": ["fine"], "label": [1]},
        "test": {"sentence": ["hidden"], "label": [-1]},
        "unsupervised": {"sentence": ["x"], "label": [0]},
    }
    found = {name: datasets.Dataset.from_dict(part, features) for name, part in data.items()}
    assert rows_of(found, "name", "sentence", "label") == {
        "train": Rows(["neg", "neg", "pos"], texts=["bad", "", "good"]),
        "validation": Rows(["pos"], texts=["fine"]),
    }


def test_labels_that_are_no_numbered_classes():
    data = {"text": ["one", "two", "three"], "label": [-1, None, 1]}
    found = {"train": datasets.Dataset.from_dict(data)}
    rows = Rows(["-1", "1"], texts=["one", "three"])
    assert rows_of(found, "name", "text", "label") == {"train": rows}


def test_a_column_that_is_not_there():
    found = {"train": datasets.Dataset.from_dict({"body": ["x"], "label": ["a"]})}
    with pytest.raises(UsageError, match=r"'name' has no column 'text'.*body, label"):
        rows_of(found, "name", "text", "label")


def images_of(*shapes):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    images = [np.full(shape, 7, np.uint8) for shape in shapes]
    data = {"image": images, "label": ["a"] * len(images)}
    return {"train": datasets.Dataset.from_dict(data, features)}


def test_images():
    rows = rows_of(images_of((4, 5), (4, 5)), "name", "image", "label")["train"]
    assert rows.images.shape == (2, 4, 5)
    assert rows.images.dtype == np.uint8
    with pytest.raises(UsageError, match=r"images of several sizes"):
        rows_of(images_of((4, 5), (5, 4)), "name", "image", "label")


def test_what_the_hub_refuses_is_one_line(monkeypatch):
    def refuse(name, subset):
        raise ValueError(f"no\nsuch {name} {subset}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr("huggingface_hub.get_session", _no_network)
    with pytest.raises(UsageError, match=r"'owner/name' \(subset 'part'\).*network") as caught:
        read_hub("owner/name", "part", "text", "label")
    assert "\n" not in str(caught.value)


def _no_network():
    raise ConnectionError("no network")


def test_without_a_network_it_fails_at_once(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr("huggingface_hub.get_session", _no_network)
    before, start = constants.HF_HUB_OFFLINE, time.monotonic()
    with pytest.raises(UsageError, match="network"):
        read_hub("lightning-evolve/no-such-dataset", None, "text", "label")
    assert time.monotonic() - start < 5  # left to itself it retries for more than 20 seconds
    assert before == constants.HF_HUB_OFFLINE
