"""metrics.csv: what the modules log, exact over any number of interruptions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lightning_evolve.files import replacing

_EVALUATION = ("val/", "test/")


class Metrics(Callback):
    """Writes logged metrics to ``metrics.csv`` in the run's directory (``default_root_dir``).

    A row of training metrics every ``log_every_n_steps`` outer steps, and a row for each
    validation. Every checkpoint holds the number of rows that were written before it; a resumed
    run drops those after it, so that it ends on the same file as one that was never interrupted.
    (Lightning's ``CSVLogger`` deletes the file on resume, and its loggers get a step's row only
    after the checkpoint of that step.)
    """

    def __init__(self) -> None:
        self._rows = 0
        self._columns: list[str] = []
        self._last_step = -1

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = _path(trainer)
        if not trainer.is_global_zero or not path.exists():
            self._rows = 0
            return
        with path.open(newline="", encoding="utf-8") as file:
            kept = [row for row, _ in zip(csv.DictReader(file), range(self._rows), strict=False)]
        self._rows = len(kept)
        # A column that only dropped rows had a value in goes with them.
        self._columns = _ordered({name for row in kept for name, value in row.items() if value})
        _write(path, self._columns, kept)

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        # With gradient accumulation several batches share a step.
        if step % every == 0 and step != self._last_step:
            self._last_step = step
            logged = trainer.logged_metrics
            self._add(trainer, {k: v for k, v in logged.items() if not k.startswith(_EVALUATION)})

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            logged = trainer.logged_metrics
            self._add(trainer, {k: v for k, v in logged.items() if k.startswith(_EVALUATION)})

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = state_dict["rows"]

    def _add(self, trainer: L.Trainer, metrics: dict[str, Any]) -> None:
        if not metrics:
            return
        self._rows += 1
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in metrics.items()}
        row = {"step": trainer.global_step, "epoch": trainer.current_epoch, **values}
        path = _path(trainer)
        columns = _ordered({*self._columns, *row})
        if columns == self._columns:
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, columns).writerow(row)
            return
        kept: list[dict[str, Any]] = []
        if self._columns:
            with path.open(newline="", encoding="utf-8") as file:
                kept = list(csv.DictReader(file))
        self._columns = columns
        _write(path, columns, [*kept, row])


def _path(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "metrics.csv"


def _ordered(names: set[str]) -> list[str]:
    first = [name for name in ("step", "epoch") if name in names]
    return first + sorted(names.difference(first))


def _write(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
