"""A progress bar with the figures that matter, and the time that is left."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import override

_FIGURES = ("loss", "accuracy", "reward")
_SECONDS_BETWEEN = 0.1  # of two updates: reading a figure off an accelerator waits for it


class RichProgress(ProgressBar):
    """Shows outer steps done, loss, accuracy, reward and time left, on standard error.

    Where that is no terminal (a file, a scheduler's log), it prints a line for each validation.

    Args:
        console: where to show it.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._enabled = True
        self._started = self._shown = 0.0
        self._first_step = 0

    @override
    def disable(self) -> None:
        # Lightning calls this in all processes but the first.
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._first_step = time.monotonic(), trainer.global_step
        self._open("train", _outer_steps(trainer), trainer.global_step)

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._show(trainer, "train", trainer.global_step)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._open("validate", self.total_val_batches, 0)
        elif self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description="validate")

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._show(trainer, "val", batch_idx + 1)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._close()
        elif self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description="train")
        elif self._enabled and not trainer.sanity_checking:
            self._console.print(self._line(trainer), highlight=False, soft_wrap=True)

    @override
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open("test", sum(trainer.num_test_batches), 0)

    @override
    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._show(trainer, "test", batch_idx + 1)

    @override
    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open("predict", sum(trainer.num_predict_batches), 0)

    @override
    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._show(trainer, "predict", batch_idx + 1)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Closed before what comes at the end of a run prints, or shows a bar of its own.
        self._show(trainer, "train", trainer.global_step, at_once=True)
        self._close()

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    @override
    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _open(self, what: str, total: float, done: int) -> None:
        if not self._enabled or not self._console.is_terminal:
            return
        self._close()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
        )
        self._bar.add_task(
            what, total=total if math.isfinite(total) else None, completed=done, figures=""
        )
        self._bar.start()

    def _show(self, trainer: L.Trainer, prefix: str, done: int, at_once: bool = False) -> None:
        now = time.monotonic()
        if self._bar is None or (now - self._shown < _SECONDS_BETWEEN and not at_once):
            return
        self._shown = now
        figures = _figures(trainer, prefix)
        if prefix == "train" and (held_out := _figures(trainer, "val")):
            figures += f"  held out: {held_out}"
        self._bar.update(self._bar.task_ids[0], completed=done, figures=figures)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, trainer: L.Trainer) -> str:
        step, total = trainer.global_step, _outer_steps(trainer)
        spent = time.monotonic() - self._started
        progress = f"step {step}"
        if math.isfinite(total):
            done = max(step - self._first_step, 1)
            left = timedelta(seconds=round(spent / done * (total - step)))
            progress = f"step {step}/{total:.0f}, {left} left"
        return f"{progress}: {_figures(trainer, 'train')}  held out: {_figures(trainer, 'val')}"


def _outer_steps(trainer: L.Trainer) -> float:
    """Outer steps of the whole run; infinite where only time or a callback ends it."""
    totals = [math.inf]
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        totals.append(trainer.max_steps)
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and math.isfinite(batches):
        totals.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
    return min(totals)


def _figures(trainer: L.Trainer, prefix: str) -> str:
    metrics = trainer.callback_metrics
    found = [(name, metrics.get(f"{prefix}/{name}")) for name in _FIGURES]
    return " ".join(f"{name} {float(value):.3f}" for name, value in found if value is not None)
