from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_evolve.data import Pixels
from lightning_evolve.errors import UsageError
from lightning_evolve.streams import BatchStream, DriftStream, EpisodeStream
from lightning_evolve.tasks import Batch, DataSpec

ALL = ["episodes", "batches", "drift"]
HELD_OUT = ["episodes", "drift"]


def signature(task):
    """All that tells a task from another."""
    batches = (*task.support, task.query)
    return (
        task.index,
        task.name,
        [(batch.rows.tolist(), batch.labels.tolist()) for batch in batches],
        [{name: tensor.tolist() for name, tensor in batch.inputs.items()} for batch in batches],
    )


def on_rank(stream, rank, world, step=0):
    stream.trainer = SimpleNamespace(
        global_rank=rank, world_size=world, global_step=step, accumulate_grad_batches=1
    )
    return stream


def started(stream):
    stream.prepare_data()
    stream.setup("fit")
    return stream


# Tasks


@pytest.mark.parametrize("kind", ALL)
def test_training_is_a_function_of_the_seed_and_the_index(make_stream, kind):
    def tasks(**seeds):
        stream = started(make_stream(kind, **seeds))
        return [signature(stream.training_task(index)) for index in (7, 0, 3)]

    first = tasks(seed=1)
    assert first == tasks(seed=1)
    assert first != tasks(seed=2)
    assert first != tasks(seed=1, split_seed=1)


@pytest.mark.parametrize("kind", HELD_OUT)
def test_tasks_of_a_split_are_a_function_of_the_index(make_stream, kind):
    stream = started(make_stream(kind))
    for split in ("train", "validation", "test"):
        all_of_them = [signature(task) for task in stream.tasks(split, 6)]
        assert [signature(task) for task in stream.tasks(split, 2, offset=3)] == all_of_them[3:5]
        assert [task[0] for task in all_of_them] == list(range(6))
    with pytest.raises(UsageError, match=r"no split 'dev': choose from train, validation, test"):
        stream.tasks("dev", 1)


@pytest.mark.parametrize("kind", HELD_OUT)
def test_no_class_and_no_text_is_in_tasks_of_two_splits(make_stream, kind):
    stream = started(make_stream(kind))
    classes, texts = {}, {}
    for split in ("train", "validation", "test"):
        tasks = stream.tasks(split, 12)
        classes[split] = {name for task in tasks for name in task.name.split()}
        rows = torch.cat([b.rows for task in tasks for b in (*task.support, task.query)])
        texts[split] = set(stream.raw(rows))
    for parts in (classes, texts):
        assert sum(map(len, parts.values())) == len(set().union(*parts.values())) > 9


@pytest.mark.parametrize("kind", ALL)
def test_what_the_learner_is_told_fits_the_batches(make_stream, kind):
    stream = started(make_stream(kind))
    batch = stream.training_task(0).query
    names = stream.table.class_names if kind == "batches" else ()
    ways = 16 if kind == "batches" else 3
    assert replace(stream.spec, encoding="") == DataSpec(ways, stream.spec.vocab_size, (), names)
    assert stream.spec.encoding  # as its words are those of the training rows
    assert batch.labels.max() < stream.spec.num_classes
    assert stream.spec.vocab_size > 4
    assert batch.inputs["input_ids"].max() < stream.spec.vocab_size


def test_drift_trains_on_steps_and_evaluates_whole_experiences(make_stream):
    stream = started(make_stream("drift"))
    assert [len(batch.rows) for batch in stream.training_task(0).support] == [6]
    for split in ("train", "validation", "test"):
        (task,) = stream.tasks(split, 1)
        assert [len(batch.rows) for batch in task.support] == [6] * 4


def test_a_source_is_read_once(make_stream, monkeypatch):
    stream = make_stream("episodes")
    stream.prepare_data()
    monkeypatch.setattr("lightning_evolve.streams.base.load", None)
    for stage in ("fit", "test"):
        stream.setup(stage)


def test_images_and_features_tell_their_shape(make_stream, tmp_path):
    stream = started(EpisodeStream(source="digits", ways=2, cache_dir=str(tmp_path)))
    assert stream.spec == DataSpec(2, 0, (1, 28, 28))
    task = stream.tasks("test", 1)[0]
    assert task.query.inputs["images"].shape == (30, 1, 28, 28)
    assert stream.floor_features(task.query.rows).shape == (30, 64)
    assert stream.raw(task.query.rows) == [str(row) for row in task.query.rows.tolist()]


@pytest.mark.parametrize("kind", ALL)
def test_raw_features_and_texts_are_those_of_the_rows(make_stream, kind):
    stream = started(make_stream(kind))
    query = stream.training_task(3).query
    features = stream.floor_features(query.rows)
    assert features.shape[0] == len(query.rows) == len(stream.raw(query.rows))
    topics = [text.split()[0] for text in stream.raw(query.rows)]
    assert len(set(zip(topics, query.labels.tolist(), strict=True))) == len(set(topics))
    again = stream.floor_features(query.rows)
    assert np.array_equal(features.toarray(), again.toarray())


# Ranks


@pytest.mark.parametrize("kind", ALL)
def test_any_number_of_ranks_gets_the_same_tasks_in_all(make_stream, kind):
    stream = started(make_stream(kind, tasks_per_step=4))
    one = [[signature(task) for task in step] for step in stream.train_dataloader()]
    assert [task[0] for step in one[:2] for task in step] == list(range(8))
    for world in (2, 4):
        shares = []
        for rank in range(world):
            loader = on_rank(stream, rank, world).train_dataloader()
            shares.append([[signature(task) for task in step] for step in loader])
        for step, whole in enumerate(one):
            assert [shares[j % world][step][j // world] for j in range(4)] == whole


@pytest.mark.parametrize("kind", HELD_OUT)
def test_ranks_share_tasks_to_evaluate_without_repeating_any(make_stream, kind):
    stream = started(make_stream(kind))
    whole = [signature(task) for task in stream.tasks("validation", 5)]
    for world in (1, 2, 4, 8):
        loaders = [on_rank(stream, rank, world).val_dataloader() for rank in range(world)]
        assert len({len(list(loader)) for loader in loaders}) == 1, "all evaluate as often"
        found = [signature(task) for loader in loaders for batch in loader for task in batch]
        assert sorted(found, key=str) == sorted(whole, key=str)


def test_ranks_share_rows_to_evaluate_without_repeating_any(make_stream, write_texts):
    source = write_texts(classes=2, each=1500)
    stream = started(make_stream("batches", source=source))
    whole = stream.split("test")
    assert isinstance(whole, Batch)
    assert len(whole.labels) == 600
    for world in (1, 2, 4, 3, 700):
        loaders = [on_rank(stream, rank, world).test_dataloader() for rank in range(world)]
        assert len({len(list(loader)) for loader in loaders}) == 1, "all evaluate as often"
        batches = [batch for loader in loaders for batch in loader if batch]
        assert max(len(batch.labels) for batch in batches) <= 256
        rows = torch.cat([batch.rows for batch in batches])
        assert sorted(rows.tolist()) == whole.rows.tolist()
        assert all(torch.equal(b.labels, stream.table.labels[b.rows]) for b in batches)


@pytest.mark.parametrize("kind", ALL)
def test_ranks_that_would_get_unequal_shares_are_refused(make_stream, kind):
    stream = on_rank(started(make_stream(kind, tasks_per_step=3)), 0, 2)
    with pytest.raises(
        UsageError, match=r"tasks_per_step is 3 and there are 2 ranks.*multiple of 2"
    ):
        stream.train_dataloader()


# Ordinary data


def test_an_epoch_of_pairs_adapts_on_each_row_at_most_once(make_stream):
    stream = started(make_stream("batches", tasks_per_step=2))
    assert len(stream.splits["train"]) == 224
    assert len(stream.train_dataloader()) == stream.steps_per_epoch == (44 - 1) // 2
    tasks = [task for step in stream.train_dataloader() for task in step]
    rows = [row for t in tasks for b in t.support for row in b.rows.tolist()]
    assert len(rows) == len(set(rows)) == 42 * 5
    assert set(rows) <= set(stream.splits["train"].tolist())


def test_too_few_rows_for_a_step(make_stream):
    with pytest.raises(
        UsageError, match=r"outer step takes 3 mini-batches of 100 rows .* are 224 training rows"
    ):
        make_stream("batches", batch_size=100, tasks_per_step=2).setup()


def test_texts_to_predict_have_the_row_numbers_of_their_file(make_stream, tmp_path):
    path = tmp_path / "unlabelled.txt"
    path.write_text("topic1 says  word\n\ntopic2 says nothing\ntopic1 says  word\n")
    stream = started(make_stream("batches", predict_source=str(path)))
    without = started(make_stream("batches"))
    (batch,) = stream.predict_dataloader()
    assert batch.rows.tolist() == [0, 1, 2, 3]
    assert batch.labels.tolist() == [-1] * 4
    texts = ["topic1 says word", "", "topic2 says nothing", "topic1 says word"]
    assert stream.raw(batch.rows) == texts
    assert torch.equal(batch.inputs["input_ids"][0], batch.inputs["input_ids"][3])
    # All else is as it is without them.
    assert stream.spec == without.spec
    for ours, theirs in (
        (stream.training_task(2).query, without.training_task(2).query),
        (stream.split("test"), without.split("test")),
    ):
        assert stream.raw(ours.rows) == without.raw(theirs.rows)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.inputs["input_ids"], theirs.inputs["input_ids"])
        assert np.array_equal(
            stream.floor_features(ours.rows).toarray(),
            without.floor_features(theirs.rows).toarray(),
        )
    (test,) = without.predict_dataloader()
    assert test.rows.tolist() == without.splits["test"].tolist()


def test_a_split_that_is_not_there(make_stream):
    stream = started(make_stream("batches"))
    with pytest.raises(
        UsageError, match=r"no split 'predict': choose from train, validation, test"
    ):
        stream.split("predict")


# What the user hears of


def test_what_is_dropped_is_one_warning(make_stream, write_texts):
    source = write_texts()
    with open(source, "a") as file:
        file.write("\n" + json.dumps({"text": "   ", "label": "class01"}))
        file.write("\n" + json.dumps({"text": "alone", "label": "small"}))
    with pytest.warns(
        UserWarning, match=r"^source '.*data.jsonl': 1 empty, .* dropped; "
    ) as caught:
        make_stream("episodes", source=source).setup()
    (message,) = [str(w.message) for w in caught if "source" in str(w.message)]
    assert "; 1 classes with fewer than 5 rows dropped" in message


BAD = [
    (EpisodeStream, {"ways": 1}, "ways is 1: give 2 or more"),
    (EpisodeStream, {"shots": 0}, "shots is 0: give 1 or more"),
    (EpisodeStream, {"queries": -3}, "queries is -3"),
    (EpisodeStream, {"tasks_per_step": 0}, "tasks_per_step is 0"),
    (EpisodeStream, {"steps_per_epoch": 0}, "steps_per_epoch is 0"),
    (EpisodeStream, {"val_tasks": 0}, "val_tasks is 0"),
    (EpisodeStream, {"test_tasks": 0}, "test_tasks is 0"),
    (EpisodeStream, {"class_fractions": (0.5, 0.5, 0.5)}, "class_fractions are .* add up to 1"),
    (EpisodeStream, {"num_workers": -1}, "num_workers is -1: give 0 or more"),
    (EpisodeStream, {"seed": -1}, "seed is -1"),
    (EpisodeStream, {"split_seed": -1}, "split_seed is -1"),
    (DriftStream, {"ways": 0}, "ways is 0"),
    (DriftStream, {"period": 0}, "period is 0"),
    (DriftStream, {"batch_size": 0}, "batch_size is 0"),
    (DriftStream, {"val_experiences": 0}, "val_experiences is 0"),
    (DriftStream, {"test_experiences": 0}, "test_experiences is 0"),
    (DriftStream, {"steps_per_epoch": -1}, "steps_per_epoch is -1"),
    (BatchStream, {"batch_size": 0}, "batch_size is 0"),
    (BatchStream, {"tasks_per_step": 0}, "tasks_per_step is 0"),
    (BatchStream, {"train_rows": 0}, "train_rows is 0"),
    (BatchStream, {"validation_rows": -1}, "validation_rows is -1"),
    (BatchStream, {"test_rows": 0}, "test_rows is 0"),
    (BatchStream, {"test_fraction": 0.0}, "test_fraction 0.0: give two positive shares"),
    (BatchStream, {"validation_fraction": 0.9}, "validation_fraction is 0.9 .* less than 1"),
]


@pytest.mark.parametrize(("stream", "arguments", "message"), BAD)
def test_bad_arguments(stream, arguments, message):
    with pytest.raises(UsageError, match=message):
        stream(**arguments)


def test_bad_sources_are_refused_at_setup(make_stream, write_texts):
    with pytest.raises(UsageError, match=r"0 of 16 classes have the 23 rows .* largest has 20"):
        make_stream("episodes", queries=21).setup()
    with pytest.raises(UsageError, match=r"16 of 16 classes .* 17 classes"):
        make_stream("episodes", ways=17).setup()
    with pytest.raises(UsageError, match=r"no column 'body'.*text, label"):
        make_stream("drift", text_column="body").setup()
    with pytest.raises(UsageError, match="the one class 'class00'"):
        make_stream("batches", source=write_texts(classes=1)).setup()
    broken = make_stream("batches", source=write_texts(), encoder=Pixels())
    for _ in range(2):  # and the second time too, not half set up
        with pytest.raises(UsageError, match="Pixels reads images"):
            broken.setup()


@pytest.mark.parametrize("batch_size", [2, 4, 6])
def test_every_class_of_an_experience_comes_whatever_the_batch(make_stream, batch_size):
    stream = started(make_stream("drift", batch_size=batch_size, period=40))
    labels = torch.cat([stream.training_task(index).query.labels for index in range(40)])
    counts = torch.bincount(labels, minlength=stream.spec.num_classes)
    assert (counts > 40 * batch_size / stream.spec.num_classes / 2).all()


def test_an_epoch_that_accumulation_does_not_divide_skips_nothing():
    class Trainer:
        accumulate_grad_batches, global_step = 4, 0

    stream = BatchStream(source="topics")
    stream.trainer = Trainer()
    begins = []
    for Trainer.global_step in range(11):
        begins.append(stream._first_step(18))
    assert begins == [0, 4, 8, 12, 16, 18, 22, 26, 30, 34, 36]
    Trainer.accumulate_grad_batches = 1
    assert stream._first_step(18) == 10
