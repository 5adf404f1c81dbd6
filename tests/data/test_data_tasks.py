from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from lightning_evolve.data.drift import QUERIES, Drift
from lightning_evolve.data.episodes import Episodes
from lightning_evolve.data.floor import RawFeatures
from lightning_evolve.data.minibatches import MiniBatches
from lightning_evolve.data.rows import Rows
from lightning_evolve.data.table import Table


def table_of(classes, each):
    """Texts of one to seven tokens; a token's number is that of its row."""
    rows = classes * each
    lengths = torch.arange(rows) % 7 + 1
    mask = torch.arange(9) < lengths[:, None]
    ids = torch.arange(1, rows + 1, dtype=torch.int32)[:, None] * mask
    labels = torch.arange(rows) // each
    names = tuple(f"class{c}" for c in range(classes))
    return Table({"input_ids": ids.int(), "attention_mask": mask}, labels, names)


def equal(first, second):
    parts = zip((*first.support, first.query), (*second.support, second.query), strict=True)
    return all(torch.equal(a.rows, b.rows) and torch.equal(a.labels, b.labels) for a, b in parts)


def rows_of(*batches):
    return [row for batch in batches for row in batch.rows.tolist()]


# Table


def test_a_batch_is_cut_to_its_longest_text():
    table = table_of(classes=2, each=7)
    batch = table.batch(torch.tensor([2, 0, 8]))
    assert batch.inputs["input_ids"].tolist() == [[3, 3, 3], [1, 0, 0], [9, 9, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert {tensor.dtype for tensor in batch.inputs.values()} == {torch.int64}
    assert batch.labels.tolist() == [0, 0, 1]
    assert batch.rows.tolist() == [2, 0, 8]
    assert table.shape == ()


def test_images_are_selected_as_they_are():
    images = torch.rand(4, 1, 5, 5)
    table = Table({"images": images}, torch.zeros(4, dtype=torch.int64), ("a",))
    assert torch.equal(table.batch(torch.tensor([3, 1])).inputs["images"], images[[3, 1]])
    assert table.shape == (1, 5, 5)


# Episodes


@pytest.fixture
def episodes():
    table = table_of(classes=8, each=12)
    rows = table.by_class(torch.arange(24, 96))  # without the first two classes
    return Episodes(table, rows, ways=4, shots=3, queries=5, seed=(0, 1))


def test_an_episode_is_what_it_should_be(episodes):
    orders = set()
    for index in range(30):
        task = episodes.task(index)
        (support,) = task.support
        assert len(set(rows_of(support, task.query))) == 4 * (3 + 5)
        assert Counter(support.labels.tolist()) == dict.fromkeys(range(4), 3)
        assert Counter(task.query.labels.tolist()) == dict.fromkeys(range(4), 5)
        classes = [f"class{c}" for c in range(8)]
        for batch in (support, task.query):
            true = [classes[row // 12] for row in batch.rows.tolist()]
            assert true == [task.name.split()[label] for label in batch.labels.tolist()]
            assert (batch.rows >= 24).all()
        assert task.index == index
        orders.add(task.name)
    assert len(orders) > 25


def test_an_episode_is_a_function_of_seed_and_index(episodes):
    there = [episodes.task(n) for n in range(6)]
    back = [episodes.task(n) for n in reversed(range(6))]
    assert all(equal(a, b) for a, b in zip(there, reversed(back), strict=True))
    assert not any(equal(there[0], other) for other in there[1:])
    other = Episodes(episodes.table, episodes.rows, 4, 3, 5, seed=(1, 1))
    assert not equal(other.task(0), there[0])


def test_every_class_and_row_gets_its_turn(episodes):
    seen = set()
    for index in range(200):
        task = episodes.task(index)
        seen.update(rows_of(*task.support, task.query))
    assert seen == set(range(24, 96))


# Mini-batches


def test_an_epoch_visits_each_row_once_and_each_epoch_in_its_own_order():
    table = table_of(classes=2, each=23)
    stream = MiniBatches(table, torch.arange(5, 46), batch_size=4, per_epoch=9, seed=(0,))
    epochs = [[stream.task(e * 9 + n) for n in range(9)] for e in range(3)]
    for epoch in epochs:
        adapted = [row for t in epoch for row in rows_of(*t.support)]
        assert len(adapted) == len(set(adapted)) == 36
        assert set(adapted) | set(rows_of(epoch[-1].query)) <= set(range(5, 46))
        for task, following in itertools.pairwise(epoch):
            # Scored on just before it is adapted on.
            assert torch.equal(task.query.rows, following.support[0].rows)
        assert not set(rows_of(epoch[-1].query)) & set(adapted)
    first = [[rows_of(*t.support) for t in epoch] for epoch in epochs]
    assert first[0] != first[1] != first[2]
    assert equal(stream.task(7), stream.task(7))
    support, query = stream.task(7).support[0], stream.task(7).query
    assert torch.equal(support.labels, support.rows // 23)
    assert len(support.rows) == len(query.rows) == 4


def test_what_is_left_over_gets_its_turn_in_other_epochs():
    table = table_of(classes=2, each=5)
    stream = MiniBatches(table, torch.arange(10), batch_size=4, per_epoch=1, seed=(0,))
    seen = {row for n in range(20) for row in rows_of(stream.task(n).query)}
    assert seen == set(range(10))


# Drift


@pytest.fixture
def drift():
    table = table_of(classes=7, each=30)
    rows = table.by_class(torch.arange(210))
    return Drift(table, rows, ways=3, period=4, batch_size=8, seed=(0, 0))


def test_classes_change_with_every_period_and_not_before(drift):
    names = [drift.task(n).name for n in range(40)]
    for start in range(0, 40, 4):
        assert len(set(names[start : start + 4])) == 1
    for first in range(0, 36, 8):  # two experiences make a round of the seven classes
        assert not set(names[first].split()) & set(names[first + 4].split())
    assert len(set(names)) == 10
    assert len({name for line in names for name in line.split()}) == 7


def test_a_step_scores_on_rows_that_it_did_not_adapt_on(drift):
    for index in range(20):
        task = drift.task(index)
        (support,) = task.support
        assert len(support.rows) == len(task.query.rows) == 8
        assert len(set(rows_of(support, task.query))) == 16
        for batch in (support, task.query):
            assert sorted(Counter(batch.labels.tolist()).values()) == [2, 3, 3]
            true = [f"class{row // 30}" for row in batch.rows.tolist()]
            assert true == [task.name.split()[label] for label in batch.labels.tolist()]
        assert equal(task, drift.task(index))
    assert not equal(drift.task(0), drift.task(1))


def test_an_experience_scores_on_rows_that_are_in_none_of_its_batches(drift):
    for index in range(5):
        task = drift.experience(index)
        assert len(task.support) == 4
        assert not set(rows_of(*task.support)) & set(rows_of(task.query))
        assert Counter(task.query.labels.tolist()) == dict.fromkeys(range(3), min(QUERIES, 30 // 3))
        assert all(len(set(rows_of(batch))) == 8 for batch in task.support)
        assert len({tuple(rows_of(batch)) for batch in task.support}) == 4
        assert task.name == drift.task(index * 4).name
        assert equal(task, drift.experience(index))


# The floor


def test_tf_idf_knows_the_words_of_the_training_rows_only():
    rows = Rows(["a", "a", "b"], texts=["red fish", "blue fish", "green fish red"])
    features = RawFeatures(rows, torch.tensor([0, 1]))(torch.tensor([2, 0]))
    assert features.shape == (2, 3)  # blue, fish, red
    dense = features.toarray()
    assert np.allclose(np.linalg.norm(dense, axis=1), 1)
    assert np.allclose(dense[0], dense[1])


def test_pixels_are_the_images_own():
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    features = RawFeatures(Rows(["a"] * 3, images=images), torch.tensor([0]))
    assert features(torch.tensor([2, 1])).tolist() == [[8, 9, 10, 11], [4, 5, 6, 7]]


def test_digits():
    from lightning_evolve.data.digits import digits

    rows = digits()
    assert rows.images.shape == (1797, 8, 8)
    assert rows.images.min() == 0
    assert rows.images.max() == 1
    assert sorted(set(rows.labels)) == list("0123456789")


def test_rows_by_class_are_in_their_order():
    labels = torch.tensor([2, 0, 2, 5, 0, 2])
    table = Table({"features": torch.zeros(6, 1)}, labels, tuple("abcdef"))
    found = table.by_class(torch.tensor([5, 4, 3, 0, 1]))
    assert {c: rows.tolist() for c, rows in found.items()} == {0: [4, 1], 2: [5, 0], 5: [3]}
    assert list(found) == [0, 2, 5]
    assert table.by_class(torch.tensor([], dtype=torch.int64)) == {}
