"""A mixture of families: which task comes when, and to whom."""

from __future__ import annotations

import pytest
import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.streams import MixtureStream
from tests.streams.test_streams_in_lightning import Recorder, trainer


@pytest.fixture
def mixture(make_stream, write_texts):
    def make(of_streams=None, **options):
        other = write_texts(classes=20, name="other.jsonl")
        streams = {
            "plain": make_stream("episodes", test_tasks=3, **(of_streams or {})),
            "other": make_stream("episodes", source=other, ways=4, test_tasks=1),
            "again": make_stream("episodes", test_tasks=2),
        }
        defaults = {"tasks_per_step": 3, "steps_per_epoch": 4}
        built = MixtureStream(streams, **{**defaults, **options})
        built.setup()
        return built

    return make


def same(one, other):
    assert (one.index, one.name, one.family) == (other.index, other.name, other.family)
    assert torch.equal(one.query.rows, other.query.rows)


def test_families_take_turns_and_none_plays_the_task_of_another(mixture):
    stream = mixture()
    assert [stream.training_task(i).family for i in range(4)] == [
        "plain",
        "other",
        "again",
        "plain",
    ]
    for index in range(6):
        task = stream.training_task(index)
        own = stream.streams[task.family].training_task(index)
        same(task, own._replace(family=task.family))
    # "plain" and "again" read the same data.
    assert not torch.equal(stream.training_task(0).query.rows, stream.training_task(2).query.rows)
    assert stream.spec.num_classes == 4
    assert {name: s.num_classes for name, s in stream.spec.families.items()} == {
        "plain": 3,
        "other": 4,
        "again": 3,
    }


def test_the_seed_is_that_of_every_stream(mixture):
    one, other = mixture(seed=0), mixture(seed=1)
    same(one.training_task(4), mixture().training_task(4))
    for index in range(3):
        ours, theirs = one.training_task(index), other.training_task(index)
        assert not torch.equal(ours.query.rows, theirs.query.rows)


def test_a_mixture_resumes_where_it_was(mixture, tmp_path):
    def fit(steps, ckpt_path=None):
        module = Recorder()
        loops = trainer(max_steps=steps)
        loops.fit(module, datamodule=mixture(tasks_per_step=2), ckpt_path=ckpt_path)
        loops.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module.trained

    whole = fit(7)
    assert [[index for index, _ in step] for step in whole[:3]] == [[0, 1], [2, 3], [4, 5]]
    assert fit(3) == whole[:3]
    assert fit(7, tmp_path / "3.ckpt") == whole[3:]


def test_evaluation_takes_the_families_in_turns_and_all_of_their_tasks(mixture):
    stream = mixture()
    tasks = [task for batch in stream.test_dataloader() for task in batch]
    assert [(t.family, t.index) for t in tasks] == [
        ("plain", 0),
        ("other", 0),
        ("again", 0),
        ("plain", 1),
        ("again", 1),
        ("plain", 2),
    ]
    for task in tasks:
        same(task, stream.tasks(task.family, "test", 1, task.index)[0])


def test_ranks_share_a_mixture(mixture):
    stream = mixture(tasks_per_step=4)
    loaders = []
    for rank in range(2):
        stream._ranks = lambda rank=rank: (rank, 2)
        loaders.append((list(stream.train_dataloader()), list(stream.test_dataloader())))
    for step in range(4):
        both = sorted(task.index for train, _ in loaders for task in train[step])
        assert both == list(range(4 * step, 4 * step + 4))
    tested = [(t.family, t.index) for _, test in loaders for batch in test for t in batch]
    assert len(tested) == len(set(tested)) == 6


def test_bad_mixtures_are_refused_in_one_line(make_stream, mixture):
    stream = make_stream("episodes")
    with pytest.raises(UsageError, match="two or more"):
        MixtureStream({"one": stream})
    with pytest.raises(UsageError, match=r"'a/b'.*letters"):
        MixtureStream({"a/b": stream, "c": stream})
    for option in ({"tasks_per_step": 5}, {"seed": 1}, {"steps_per_epoch": 7}, {"num_workers": 1}):
        (name,) = option
        with pytest.raises(UsageError, match=rf"streams\.plain: {name}.*--data\.{name}"):
            mixture(option)
    with pytest.raises(UsageError, match="no rows to predict"):
        mixture().predict_dataloader()
