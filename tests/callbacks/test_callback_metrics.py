from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lightning_evolve.callbacks import Metrics


@pytest.fixture
def trainer(tmp_path: Path) -> SimpleNamespace:
    return SimpleNamespace(
        default_root_dir=str(tmp_path),
        is_global_zero=True,
        global_step=0,
        current_epoch=0,
        log_every_n_steps=2,
        logged_metrics={},
        sanity_checking=False,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
    )


def steps(metrics: Metrics, trainer: SimpleNamespace, *numbers: int) -> None:
    for number in numbers:
        trainer.global_step = number
        trainer.logged_metrics["train/loss"] = torch.tensor(1 / number)
        metrics.on_train_batch_end(trainer, None, None, None, 0)


def validation(metrics: Metrics, trainer: SimpleNamespace) -> None:
    trainer.logged_metrics["val/loss"] = torch.tensor(0.5)
    metrics.on_validation_end(trainer, None)


def text(trainer: SimpleNamespace) -> str:
    return Path(trainer.default_root_dir, "metrics.csv").read_text()


def test_columns_that_come_later(trainer) -> None:
    metrics = Metrics()
    metrics.on_fit_start(trainer, None)
    steps(metrics, trainer, 1, 2)
    validation(metrics, trainer)
    steps(metrics, trainer, 3, 4)
    assert text(trainer) == "step,epoch,train/loss,val/loss\n2,0,0.5,\n2,0,,0.5\n4,0,0.25,\n"


def test_batches_of_one_step_are_one_row(trainer) -> None:
    metrics = Metrics()
    metrics.on_fit_start(trainer, None)
    steps(metrics, trainer, 2, 2, 2)
    assert text(trainer).count("\n2,") == 1


def test_rows_after_the_checkpoint_are_dropped_with_their_columns(trainer) -> None:
    metrics = Metrics()
    metrics.on_fit_start(trainer, None)
    steps(metrics, trainer, 2, 4)
    state, before = metrics.state_dict(), text(trainer)
    steps(metrics, trainer, 6)
    validation(metrics, trainer)
    with Path(trainer.default_root_dir, "metrics.csv").open("a") as file:
        file.write("8,0,0.")  # killed in the middle of a line
    resumed = Metrics()
    resumed.load_state_dict(state)
    resumed.on_fit_start(trainer, None)
    assert text(trainer) == before
    trainer.logged_metrics = {}
    steps(resumed, trainer, 6)
    assert text(trainer).splitlines()[1:] == [
        "2,0,0.5",
        "4,0,0.25",
        f"6,0,{float(1 / torch.tensor(6.0))}",
    ]
    assert resumed.state_dict() == {"rows": 3}


def test_a_run_that_starts_over_starts_its_file_over(trainer) -> None:
    metrics = Metrics()
    metrics.on_fit_start(trainer, None)
    steps(metrics, trainer, 2)
    again = Metrics()
    again.on_fit_start(trainer, None)
    steps(again, trainer, 2)
    assert text(trainer).splitlines() == ["step,epoch,train/loss", "2,0,0.5"]


def test_other_processes_count_but_do_not_write(trainer) -> None:
    trainer.is_global_zero = False
    metrics = Metrics()
    metrics.on_fit_start(trainer, None)
    steps(metrics, trainer, 2)
    assert metrics.state_dict() == {"rows": 1}
    assert not Path(trainer.default_root_dir, "metrics.csv").exists()


def test_validation_outside_of_training_is_no_row(trainer) -> None:
    trainer.state.fn = TrainerFn.VALIDATING
    validation(Metrics(), trainer)
    assert not Path(trainer.default_root_dir, "metrics.csv").exists()
