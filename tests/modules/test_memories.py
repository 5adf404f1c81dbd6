"""Tasks under way under Lightning: resumed exactly, on any number of processes."""

from __future__ import annotations

import sys

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import Implicit, PersistentES, Reptile, Unrolled
from lightning_evolve.estimators.room import graph_bytes, machine_bytes
from lightning_evolve.meta_learners import SGD, Gains
from lightning_evolve.modules import EvolvingClassifier
from tests.modules.small import Keep, difference, module, stream, trainer


def pes(cls=EvolvingClassifier, **options):
    """Three windows an episode, so that 4 and 7 outer steps end in the middle of one."""
    defaults = dict(estimator=PersistentES(window=2), steps=6, measurements=3)
    return module(cls, **{**defaults, **options})


class Forgetful(EvolvingClassifier):
    """Control: a checkpoint without what is under way."""

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["lightning_evolve"]["memories"] = []


def fit(folder, model, steps, *, processes=1, resumed=None):
    folder.mkdir(exist_ok=True)
    # In 64 bits, for the slope between two rewards magnifies what rounding leaves of the order of
    # a sum.
    options = dict(max_steps=steps, precision="64-true", callbacks=[Keep(folder)])
    options["limit_val_batches"] = 0
    if processes > 1:
        options["devices"] = processes
        options["strategy"] = DDPStrategy(start_method="fork", process_group_backend="gloo")
    t = trainer(folder, **options)
    data = stream()
    model.saved_to = folder / "c.ckpt"
    t.fit(model, datamodule=data, ckpt_path=resumed, **({"weights_only": True} if resumed else {}))
    return torch.load(folder / "rank0.pt", weights_only=True)


def saving(cls=EvolvingClassifier):
    """A module that writes a checkpoint at the end, on all processes as Lightning asks for."""

    class Saving(cls):
        def on_train_end(self):
            self.trainer.save_checkpoint(self.saved_to)

    return Saving


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"), pes(), 10)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 1), (1, 2)])
def test_resume_is_exact_also_on_another_number_of_processes(tmp_path, whole, first, second):
    fit(tmp_path / "stopped", pes(saving()), 4, processes=first)
    file = tmp_path / "stopped" / "c.ckpt"
    memories = torch.load(file, weights_only=True)["lightning_evolve"]["memories"]
    assert [m["task"]["index"] for m in memories] == [12, 13, 14, 15], "in the stream's order"
    assert [m["step"] for m in memories] == [2] * 4
    ended = fit(tmp_path / "resumed", pes(), 10, processes=second, resumed=file)
    if (first, second) == (1, 1):
        assert difference(whole, ended) == 0
    assert difference(whole, ended) < 1e-6


def test_two_processes_end_where_one_does(tmp_path, whole):
    assert difference(whole, fit(tmp_path / "two", pes(), 10, processes=2)) < 1e-6


def test_a_checkpoint_that_forgets_what_is_under_way_ends_elsewhere(tmp_path, whole):
    fit(tmp_path / "stopped", pes(saving(Forgetful)), 4)
    file = tmp_path / "stopped" / "c.ckpt"
    ended = fit(tmp_path / "resumed", pes(Forgetful), 10, resumed=file)
    assert difference(whole, ended) > 1e-4


def test_another_number_of_tasks_is_refused(tmp_path):
    model = pes()
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(model, datamodule=stream())
    with pytest.raises(UsageError, match=r"4 tasks under way, and 2 in .*tasks_per_step"):
        model.training_step([stream_task(i) for i in range(2)], 0)


def stream_task(index):
    data = stream()
    data.setup()
    return data.training_task(index)


def test_persistent_theta_is_refused():
    with pytest.raises(UsageError, match="PersistentES with persistent theta"):
        pes(theta="persistent")


@pytest.mark.parametrize("estimator", [Implicit(damping=1.0), Reptile()])
def test_estimators_of_the_initial_theta_move_all_of_it(tmp_path, estimator):
    def model():
        return module(estimator=estimator, meta_learner=SGD, learn_init=True, alpha=0.1, beta=1e-2)

    start = model()
    data = stream()
    data.setup()
    start.build(data.spec)
    ended = fit(tmp_path / "whole", model(), 3)
    moved = [n for n, t in start.state_dict().items() if not torch.equal(t, ended[n])]
    assert set(moved) >= {f"learner.{n}" for n in start.theta()}


def test_a_rule_with_a_phi_is_refused_once_it_is_built(tmp_path):
    model = module(estimator=Reptile(), meta_learner=Gains, learn_init=True)
    with pytest.raises(UsageError, match="phi of Gains would never move"):
        trainer(tmp_path, max_steps=1).fit(model, datamodule=stream())


def test_the_pull_is_felt_in_evaluation():
    """The held-out tasks are adapted to by the inner loop that theta_0 was learned for."""
    task, found = stream_task(0), []
    for damping in (1e-6, 3.0):
        model = module(
            estimator=Implicit(damping=damping), meta_learner=SGD, learn_init=True, alpha=0.2
        )
        data = stream()
        data.setup()
        model.build(data.spec)
        found.append(model.adapted_logits(task)[0])
    assert not torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize(("checkpoint", "fits"), [(0, False), (4, False), (1, True)])
def test_a_graph_beyond_the_machine_is_refused_before_it_is_made(
    tmp_path, monkeypatch, checkpoint, fits
):
    data = stream()
    data.setup()
    model = module(estimator=Unrolled(checkpoint=checkpoint), steps=50)
    model.build(data.spec)
    step = graph_bytes(model.episode(data.training_task(0)), "full")
    where = sys.modules["lightning_evolve.estimators.unrolled"]  # the name is a function's too
    monkeypatch.setattr(where, "machine_bytes", lambda _: 3 * step)
    t = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    if fits:
        t.fit(model, datamodule=data)
    else:
        needed = f"graph of {checkpoint or 50} inner steps needs .* GiB"
        with pytest.raises(UsageError, match=f"{needed}, .* checkpoint"):
            t.fit(model, datamodule=data)


def test_the_machine_has_some_memory():
    data = stream()
    data.setup()
    model = module()
    model.build(data.spec)
    assert machine_bytes(model.episode(data.training_task(0))) > 2**28
