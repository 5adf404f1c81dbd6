"""checkpoints/last.ckpt and checkpoints/best.ckpt, from which a run goes on exactly."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lightning_evolve.errors import UsageError
from lightning_evolve.files import replacing

FOLDER, LAST, BEST = "checkpoints", "last.ckpt", "best.ckpt"


class Checkpoints(Checkpoint):
    """Keeps the last state of a run and the best one, in the run's directory.

    The last one is written every few outer steps, after each validation and at the end, only at
    moments that Lightning resumes from without repeating or skipping anything: never between a
    step and the validation that follows it, and not between two epochs without a validation, where
    a resumed run miscounts its epochs; what is due then waits for the next step.

    Args:
        monitor: logged metric of the validation that says which state is best.
        mode: whether the best is the lowest or the highest.
        every_n_train_steps: outer steps between two writings of the last state, at least 1.

    Raises:
        UsageError: for a number of steps below 1.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: int = 100,
    ) -> None:
        if every_n_train_steps < 1:
            raise UsageError(
                f"checkpoints.every_n_train_steps is {every_n_train_steps}; give 1 or more"
            )
        self.monitor, self.mode = monitor, mode
        self.every_n_train_steps = every_n_train_steps
        self.best: float | None = None
        self._saved_at, self._due = -1, False
        self._folder = Path()

    @property
    def best_model_path(self) -> str:
        """File of the best state so far, as in Lightning's ``ModelCheckpoint``; "" for none."""
        file = self._folder / BEST
        return str(file) if self.best is not None and file.exists() else ""

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        # Strategies that fork set it in the process that they return to.
        self._folder = Path(path).parent if path else self._folder

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Every process must name the same file, also where it was not this one that chose it.
        self._folder = Path(trainer.strategy.broadcast(trainer.default_root_dir)) / FOLDER

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            # What a run that was killed while it wrote has left.
            for name in (LAST, BEST):
                for unfinished in self._folder.glob(f".{Path(name).stem}-*.ckpt"):
                    unfinished.unlink()
        if not trainer.strategy.broadcast((self._folder / BEST).exists()):
            self.best = None  # a run that goes on in another directory has its own best

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step, ends_epoch = trainer.global_step, trainer.is_last_batch
        self._due |= step % self.every_n_train_steps == 0
        is_final = step == trainer.max_steps or (
            ends_epoch and trainer.current_epoch + 1 == trainer.max_epochs
        )
        if _validates_after(trainer, batch_idx):
            return
        if is_final or (self._due and not ends_epoch):
            self._save(trainer, LAST)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(k for k in trainer.callback_metrics if k.startswith("val/")))
            raise UsageError(
                f"checkpoints.monitor is {self.monitor!r}, which the validation does not log; "
                f"choose one of {known}"
            )
        score = float(trainer.callback_metrics[self.monitor])
        # The last state knows of the best, whichever is written first.
        better = not math.isnan(score) and (
            self.best is None or (score < self.best if self.mode == "min" else score > self.best)
        )
        # All processes write together or none does.
        if trainer.strategy.reduce_boolean_decision(better):
            self.best = score
            self._save(trainer, BEST)
        self._save(trainer, LAST)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A run that was stopped early, by time say.
        if self._saved_at != trainer.global_step:
            self._save(trainer, LAST)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "monitor": self.monitor, "mode": self.mode}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        known = {"monitor": self.monitor, "mode": self.mode, **state_dict}
        # The best of another metric is none of this one.
        same = (known["monitor"], known["mode"]) == (self.monitor, self.mode)
        self.best = state_dict["best"] if same else None

    def _save(self, trainer: L.Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self._folder / name)
        if name == LAST:
            self._saved_at, self._due = trainer.global_step, False


def _validates_after(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether a validation follows this batch, so that the state is written after that."""
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (epochs and (trainer.current_epoch + 1) % epochs):
        return False
    if trainer.should_stop or every is None or math.isinf(every):
        return trainer.should_stop or trainer.is_last_batch
    # Without a number of epochs, Lightning counts batches over all of them.
    batches = batch_idx if epochs else trainer.fit_loop.total_batch_idx
    return (batches + 1) % every == 0


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to its place and renames it, so that it is complete or not there.

    Lightning writes to the system's temporary folder and moves the file, which is a copy wherever
    that folder is another file system: a run killed meanwhile leaves half a file.
    """

    @override
    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
