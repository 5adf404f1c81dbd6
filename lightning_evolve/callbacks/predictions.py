"""predictions.csv: what ``predict`` found, a row of the source a line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_evolve.files import free, replacing
from lightning_evolve.tasks import Batch, Task

_COLUMNS = ["row", "text", "predicted", "probability"]


class _Line(NamedTuple):
    task: int
    classes: str
    row: int
    predicted: int
    probability: float


class PredictionWriter(Callback):
    """Writes ``predictions.csv`` to the run's directory, under a free name if that is taken.

    ``predict_step`` returns, for each batch or task, ``rows``, ``predicted`` and ``probability``
    of shape ``[rows]``. Columns: row in the stream's table (of the source cleaned and split; a
    text tells which it is), its text, the predicted class, its probability; for few-shot tasks
    also the number and the classes of the task, since a row may be in several and the predicted
    class is only a position among those classes.
    """

    def __init__(self) -> None:
        self._found: list[_Line] = []

    @override
    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch | list[Task],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        of_task = [(-1, "")] if isinstance(batch, Batch) else [(t.index, t.name) for t in batch]
        for (index, name), output in zip(of_task, outputs, strict=True):
            columns = [output[key].tolist() for key in ("rows", "predicted", "probability")]
            self._found += [_Line(index, name, *values) for values in zip(*columns, strict=True)]

    @override
    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = self._gathered(trainer)
        self._found = []
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        texts = data.raw(torch.tensor([line.row for line in found], dtype=torch.int64))
        classes = data.spec.class_names
        of_tasks = any(line.task >= 0 for line in found)
        columns = ["task", "classes", *_COLUMNS] if of_tasks else _COLUMNS
        path = free(Path(trainer.default_root_dir) / "predictions.csv")
        with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            for line, text in zip(found, texts, strict=True):
                predicted = classes[line.predicted] if classes else line.predicted
                probability = f"{line.probability:.6f}"
                named = {"text": text, "predicted": predicted, "probability": probability}
                writer.writerow({**line._asdict(), **named})
        print(f"{len(found)} predictions in {path}")

    def _gathered(self, trainer: L.Trainer) -> list[_Line]:
        found = self._found
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, found)
            found = [line for part in parts for line in part]
        # In the order of the tasks and rows, however they were shared out over processes.
        return sorted(found)
