from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint

from lightning_evolve.cli import lightning_cli


class Killed(BaseException):
    """As sudden as SIGKILL: nothing that is written afterwards counts."""


class Clock:
    """Kills at the n-th call of a hook."""

    def __init__(self) -> None:
        self.calls, self.limit = 0, -1

    def tick(self) -> None:
        self.calls += 1
        if self.calls == self.limit:
            raise Killed


HOOKS = [
    f"on_{what}"
    for what in (
        "fit_start",
        "train_batch_start",
        "train_batch_end",
        "validation_start",
        "validation_batch_end",
        "validation_end",
        "train_epoch_start",
        "train_epoch_end",
        "train_end",
        "fit_end",
    )
]


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """Ticks before and after the callbacks of the command line."""
    clock = Clock()
    hooks = {hook: lambda self, *args: clock.tick() for hook in HOOKS}
    before, after = type("Before", (Callback,), hooks), type("After", (Checkpoint,), hooks)
    make = lightning_cli.EvolveCLI.instantiate_trainer

    def surrounded(self, **kwargs) -> L.Trainer:
        trainer = make(self, **kwargs)
        trainer.callbacks = [before(), *trainer.callbacks, after()]
        return trainer

    monkeypatch.setattr(lightning_cli.EvolveCLI, "instantiate_trainer", surrounded)
    return clock


def outcome(run: str) -> dict[str, object]:
    last = torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)
    return {
        "metrics": Path(run, "metrics.csv").read_text(),
        "theta": {name: t.tolist() for name, t in last["state_dict"].items()},
        "momentum": str(last["optimizer_states"]),
        "step": last["global_step"],
        "best": last["callbacks"]["Checkpoints"],
        "files": sorted(p.name for p in Path(run, "checkpoints").iterdir()),
    }


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.max_steps=15", "--checkpoints.every_n_train_steps=4"],
        ["--trainer.max_steps=15", "--trainer.val_check_interval=3"],
        ["--trainer.max_steps=-1", "--trainer.max_epochs=4", "--trainer.limit_val_batches=0"],
        [
            "--trainer.max_steps=15",
            "--trainer.check_val_every_n_epoch=null",
            "--trainer.val_check_interval=5",
            "--checkpoints.every_n_train_steps=2",
        ],
        ["--trainer.max_epochs=4", "--trainer.max_steps=-1", "--trainer.check_val_every_n_epoch=2"],
    ],
)
def test_a_killed_run_ends_on_the_same_bits(options, call, clock) -> None:
    arguments = ["fit", "--config", "tiny.yaml", "--trainer.enable_progress_bar=false", *options]
    assert call(*arguments, "--run_dir=whole").code == 0
    expected, total = outcome("whole"), clock.calls
    # A few of the moments: together the cases fall on most of the hooks.
    for number, limit in enumerate(range(1, total + 1, 41)):
        run = f"--run_dir=run-{number}"
        clock.calls, clock.limit = 0, limit
        with pytest.raises(Killed):
            call(*arguments, run)
        # And a second time, while it goes on.
        clock.calls, clock.limit = 0, total // 3
        try:
            call(*arguments, run, "--ckpt_path=last")
        except Killed:
            clock.limit = -1
            assert call(*arguments, run, "--ckpt_path=last").code == 0
        assert outcome(f"run-{number}") == expected, f"killed at call {limit} of {total}"


def test_going_on_for_longer_is_one_long_run(call) -> None:
    quiet = "--trainer.enable_progress_bar=false"
    call("fit", "-c", "tiny.yaml", "--trainer.max_steps=12", quiet)
    got = call("fit", "-c", "tiny.yaml", "--trainer.max_steps=20", "--ckpt_path=last", quiet)
    assert "run directory: runs/tiny\n" in got.out
    call("fit", "-c", "tiny.yaml", "--trainer.max_steps=20", "--run_dir=long", quiet)
    assert outcome("runs/tiny") == outcome("long")
    assert Path("runs/tiny/config-2.yaml").exists(), "the options it went on under"
    # Without a config file, the newest configuration of the run holds.
    assert call("fit", "--run_dir=runs/tiny", "--ckpt_path=last").code == 0
    assert not Path("runs/tiny/config-3.yaml").exists()
    quiet += " --trainer.limit_val_batches=0"
    call("fit", "-c", "tiny.yaml", "--trainer.max_steps=12", "--run_dir=short", *quiet.split())
    longer = ["--trainer.max_steps=20", "--ckpt_path=last", *quiet.split()]
    call("fit", "-c", "tiny.yaml", "--run_dir=short", *longer)
    call("fit", "-c", "tiny.yaml", "--run_dir=long2", "--trainer.max_steps=20", *quiet.split())
    assert outcome("short") == outcome("long2")


def test_the_newest_of_several_goes_on(call) -> None:
    call("fit", "-c", "tiny.yaml")
    call("fit", "-c", "tiny.yaml")
    got = call("fit", "-c", "tiny.yaml", "--ckpt_path", "last")
    assert "run directory: runs/tiny-2\n" in got.out


def test_nothing_to_go_on_from_starts_from_the_beginning(call) -> None:
    got = call("fit", "-c", "tiny.yaml", "--ckpt_path", "last")
    assert got.code == 0
    assert "no checkpoint in it yet: starts from the beginning" in got.out
    assert Path("runs/tiny/checkpoints/last.ckpt").exists()


def test_a_checkpoint_file_starts_a_new_run(call) -> None:
    call("fit", "-c", "tiny.yaml")
    metrics = Path("runs/tiny/metrics.csv").read_bytes()
    best = "--ckpt_path=runs/tiny/checkpoints/best.ckpt"
    assert "run directory: runs/tiny-2\n" in call("fit", "-c", "tiny.yaml", best).out
    assert Path("runs/tiny/metrics.csv").read_bytes() == metrics
    # The file of the very run that is named goes on with it.
    got = call("fit", "-c", "tiny.yaml", best, "--run_dir=runs/tiny", "--trainer.max_steps=8")
    assert got.code == 0
    assert Path("runs/tiny/metrics.csv").read_bytes() == metrics


def test_another_model_does_not_start_from_a_checkpoint(call) -> None:
    Path("plain.yaml").write_text(
        "model: {class_path: Classifier, init_args: {learner: {class_path: Head}}}\n"
    )
    call("fit", "-c", "tiny.yaml")
    got = call(
        "fit", "-c", "tiny.yaml", "-c", "plain.yaml", "--ckpt_path=runs/tiny/checkpoints/last.ckpt"
    )
    assert "Classifier learns fixed classes" in got.mistake
    assert [p.name for p in Path("runs").iterdir()] == ["tiny"]
