"""The streams under Lightning's own loops: order, resuming, workers, ranks, the command line."""

from __future__ import annotations

import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from lightning_evolve.streams import Stream
from lightning_evolve.streams.loaders import StepSampler


class Recorder(L.LightningModule):
    """Takes a step on each batch and remembers which tasks there were."""

    def __init__(self, asks_for_steps=False):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.asks_for_steps = asks_for_steps
        self.trained, self.tested, self.predicted = [], [], []

    def configure_optimizers(self):
        if self.asks_for_steps:  # which makes Lightning build the loader early
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.trained.append([(task.index, task.query.rows.tolist()) for task in batch])
        return self.layer(torch.ones(1, 1)).sum()

    def test_step(self, batch, batch_idx):
        self.tested += [task.index for task in batch]

    def predict_step(self, batch, batch_idx):
        self.predicted += batch.rows.tolist()


def trainer(**options):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return L.Trainer(**{**defaults, **options})


@pytest.fixture
def fit(make_stream):
    def fit(kind, steps, module=None, ckpt_path=None, of_trainer=None, **options):
        module = module or Recorder()
        loops = trainer(max_steps=steps, max_epochs=100, **(of_trainer or {}))
        loops.fit(module, datamodule=make_stream(kind, **options), ckpt_path=ckpt_path)
        return module.trained

    return fit


@pytest.mark.parametrize("kind", ["episodes", "batches", "drift"])
def test_epochs_go_on_along_the_stream(fit, make_stream, kind):
    length = {} if kind == "batches" else {"steps_per_epoch": 8}
    trained = fit(kind, 20, tasks_per_step=2, **length)
    stream = make_stream(kind, tasks_per_step=2)
    stream.setup()
    for step, tasks in enumerate(trained):
        indices = (2 * step, 2 * step + 1)
        assert tasks == [(i, stream.training_task(i).query.rows.tolist()) for i in indices]
    assert len(trained) == 20


@pytest.mark.parametrize("stopped", [3, 8, 11, 16])
def test_a_resumed_run_takes_the_steps_that_were_left(fit, tmp_path, stopped):
    whole = fit("episodes", 20, steps_per_epoch=8)
    save = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, filename="{step}")
    saving = {"callbacks": [save], "enable_checkpointing": True}
    fit("episodes", stopped, steps_per_epoch=8, of_trainer=saving)
    for workers, asks in ((0, False), (0, True), (2, True)):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not resumable")
            rest = fit(
                "episodes",
                20,
                Recorder(asks),
                ckpt_path=save.best_model_path,
                steps_per_epoch=8,
                num_workers=workers,
            )
        assert rest == whole[stopped:], (workers, asks)


def test_a_shorter_epoch_goes_on_where_it_stopped(fit):
    trained = fit(
        "episodes", 7, steps_per_epoch=8, tasks_per_step=1, of_trainer={"limit_train_batches": 3}
    )
    assert [tasks[0][0] for tasks in trained] == list(range(7))


def test_workers_make_no_difference(fit):
    assert fit("batches", 20, num_workers=2) == fit("batches", 20)


def test_loading_leaves_the_global_random_state_alone(make_stream):
    stream = make_stream("episodes", steps_per_epoch=2)
    stream.setup()
    before = torch.get_rng_state()
    assert len(list(stream.train_dataloader())) == 2
    assert len(list(stream.val_dataloader())) == 5
    assert torch.equal(torch.get_rng_state(), before)


def test_step_sampler():
    step = [0]
    sampler = StepSampler(4, start=lambda: step[0])
    assert len(sampler) == 4
    assert list(sampler) == [0, 1, 2, 3]
    step[0] = 6
    assert list(sampler) == [6, 7, 8, 9]


def test_predicting_gives_every_row_once(make_stream):
    module = Recorder()
    stream = make_stream("batches")
    trainer().predict(module, stream, return_predictions=False)
    assert module.predicted == stream.splits["test"].tolist()


class Reporter(Recorder):
    """Leaves what each rank has seen in a folder, for ranks are processes."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def write(self, stage, seen):
        torch.save(seen, self.folder / f"{stage}{self.trainer.global_rank}.pt")

    def on_train_end(self):
        self.write("trained", self.trained)

    def on_test_end(self):
        self.write("tested", self.tested)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system cannot fork")
def test_two_ranks_share_the_stream_and_lightning_leaves_the_order_alone(make_stream, tmp_path):
    stream = make_stream("episodes", tasks_per_step=4, steps_per_epoch=8, test_tasks=5)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    two = trainer(devices=2, strategy=strategy, max_steps=10, use_distributed_sampler=True)
    module = Reporter(tmp_path)
    two.fit(module, datamodule=stream)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    trainer(devices=2, strategy=strategy).test(module, datamodule=stream)
    for rank in range(2):
        trained = torch.load(tmp_path / f"trained{rank}.pt")
        indices = [[index for index, _ in step] for step in trained]
        assert indices == [[4 * step + rank, 4 * step + 2 + rank] for step in range(10)]
        assert torch.load(tmp_path / f"tested{rank}.pt") == list(range(rank, 5, 2))


def test_the_command_line_builds_every_stream_from_yaml(tmp_path):
    from jsonargparse import ArgumentParser

    config = """
    class_path: lightning_evolve.streams.EpisodeStream
    init_args:
      source: digits
      ways: 2
      class_fractions: [0.4, 0.2, 0.4]
      encoder:
        class_path: lightning_evolve.data.Pixels
        init_args: {size: 14}
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Stream, "data")
    (tmp_path / "data.yaml").write_text(config)
    parsed = parser.parse_args([f"--data={tmp_path / 'data.yaml'}", "--data.init_args.shots=2"])
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    stream = instantiate(parsed).data
    assert (stream.ways, stream.shots, stream.encoder.size) == (2, 2, 14)
    for name in ("BatchStream", "DriftStream"):
        short = [f"--data={name}", "--data.classes=[a, b]", "--data.seed=3", "--data.encoder=Words"]
        stream = instantiate(parser.parse_args(short)).data
        assert (type(stream).__name__, stream.classes, stream.seed) == (name, ["a", "b"], 3)
    with pytest.raises(Exception, match="shoots"):
        parser.parse_args(["--data=EpisodeStream", "--data.shoots=2"])
