from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import torch

from lightning_evolve.callbacks import PredictionWriter
from lightning_evolve.tasks import Batch, DataSpec, Task


def batch(*rows: int) -> Batch:
    numbers = torch.tensor(rows)
    return Batch({}, numbers * 0, numbers)


def output(part: Batch) -> dict[str, torch.Tensor]:
    return {
        "rows": part.rows,
        "predicted": part.rows % 2,
        "probability": torch.full((len(part.rows),), 0.75),
    }


def trainer(folder: Path, class_names: tuple[str, ...]) -> SimpleNamespace:
    data = SimpleNamespace(
        spec=DataSpec(2, class_names=class_names),
        raw=lambda rows: [f'text "{row}",\nnext' for row in rows.tolist()],
    )
    return SimpleNamespace(
        default_root_dir=str(folder), world_size=1, is_global_zero=True, datamodule=data
    )


def written(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_come_in_order_under_the_names_of_their_classes(tmp_path: Path, capsys) -> None:
    writer, run = PredictionWriter(), trainer(tmp_path, ("cats", "dogs"))
    for part in (batch(7, 3), batch(4)):
        writer.on_predict_batch_end(run, None, [output(part)], part, 0)
    writer.on_predict_end(run, None)
    rows = written(tmp_path / "predictions.csv")
    assert rows[0] == {
        "row": "3",
        "text": 'text "3",\nnext',
        "predicted": "dogs",
        "probability": "0.750000",
    }
    assert [row["row"] for row in rows] == ["3", "4", "7"]
    assert "3 predictions in" in capsys.readouterr().out


def test_tasks_are_kept_apart(tmp_path: Path) -> None:
    writer, run = PredictionWriter(), trainer(tmp_path, ())
    for index in (10, 9):
        part = batch(1, 0)
        tasks = [Task((part,), part, index, f"classes {index}")]
        writer.on_predict_batch_end(run, None, [output(part)], tasks, 0)
    writer.on_predict_end(run, None)
    rows = written(tmp_path / "predictions.csv")
    assert [(row["task"], row["row"], row["predicted"]) for row in rows] == [
        ("9", "0", "0"),
        ("9", "1", "1"),
        ("10", "0", "0"),
        ("10", "1", "1"),
    ]
    assert rows[0]["classes"] == "classes 9"


def test_earlier_predictions_stay(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("mine")
    writer, run = PredictionWriter(), trainer(tmp_path, ())
    writer.on_predict_batch_end(run, None, [output(batch(1))], batch(1), 0)
    writer.on_predict_end(run, None)
    assert (tmp_path / "predictions.csv").read_text() == "mine"
    assert len(written(tmp_path / "predictions-2.csv")) == 1
