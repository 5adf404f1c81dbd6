from __future__ import annotations

import io
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from lightning_evolve.callbacks import RichProgress


def trainer(**changes: object) -> SimpleNamespace:
    values = {
        "global_step": 0,
        "max_steps": 10,
        "max_epochs": -1,
        "num_training_batches": 4,
        "accumulate_grad_batches": 1,
        "num_test_batches": [3],
        "sanity_checking": False,
        "state": SimpleNamespace(fn=TrainerFn.FITTING),
        "callback_metrics": {
            "train/loss": torch.tensor(1.25),
            "train/reward": torch.tensor(-1.5),
            "val/accuracy": torch.tensor(0.5),
            "val/recall": torch.tensor(0.123),
        },
    }
    return SimpleNamespace(**{**values, **changes})


def train(terminal: bool, run: SimpleNamespace) -> str:
    stream = io.StringIO()
    bar = RichProgress(Console(file=stream, force_terminal=terminal, width=140))
    bar.on_train_start(run, None)
    for step in range(1, 5):
        run.global_step = step
        bar.on_train_batch_end(run, None, None, None, step)
    bar.on_validation_start(run, None)
    bar.on_validation_end(run, None)
    bar.on_train_end(run, None)
    return stream.getvalue()


def test_a_line_for_each_validation_where_there_is_no_terminal() -> None:
    shown = train(False, trainer())
    assert shown.splitlines() == [
        "step 4/10, 0:00:00 left: loss 1.250 reward -1.500  held out: accuracy 0.500"
    ]


def test_a_bar_on_a_terminal() -> None:
    shown = train(True, trainer())
    assert "4/10" in shown
    assert "loss 1.250 reward -1.500  held out: accuracy 0.500" in shown
    assert "recall" not in shown


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_steps": -1, "max_epochs": 2}, "step 4/8, "),
        ({"max_steps": 100, "max_epochs": 2}, "step 4/8, "),
        ({"max_steps": -1, "max_epochs": 2, "num_training_batches": math.inf}, "step 4: "),
        ({"max_steps": -1}, "step 4: "),
    ],
)
def test_how_many_steps_there_will_be(changes, said) -> None:
    assert train(False, trainer(**changes)).startswith(said)


def test_other_processes_show_nothing() -> None:
    stream = io.StringIO()
    bar = RichProgress(Console(file=stream, force_terminal=False))
    bar.disable()
    run = trainer()
    bar.on_train_start(run, None)
    bar.on_validation_end(run, None)
    assert stream.getvalue() == ""


def test_an_error_closes_the_bar() -> None:
    stream = io.StringIO()
    bar = RichProgress(Console(file=stream, force_terminal=True, width=140))
    bar.on_test_start(trainer(), None)
    bar.on_exception(trainer(), None, ValueError())
    # The cursor is shown again.
    assert stream.getvalue().endswith("\x1b[?25h")
