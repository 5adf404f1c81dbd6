"""A run's results at Weights & Biases: the table, the curves and the checkpoint."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger

from lightning_evolve.reports.table import METHODS


def log_results(
    trainer: L.Trainer,
    results: dict[str, Any],
    curves: dict[str, dict[str, Any]],
    plot: Path,
    prefix: str = "test",
) -> None:
    """Logs the held-out table and the adaptation curves to every run at W&B.

    The summary gets ``test/METHOD/QUANTITY``, a mean, with ``/low`` and ``/high``, the 95%
    interval, for W&B to sort and filter by; the history gets the table, a chart of each quantity
    and the picture.

    Args:
        trainer: of the run; its other loggers are left alone.
        results: as in ``results.json``.
        curves: as :func:`lightning_evolve.reports.plot_curves` takes them.
        plot: PNG file of the curves.
        prefix: put before all names.
    """
    for run in _runs(trainer):
        import wandb

        columns, data = _table(results["rows"])
        media: dict[str, Any] = {
            f"{prefix}/table": wandb.Table(columns=columns, data=data),
            f"{prefix}/curves": wandb.Image(str(plot)),
        }
        for quantity in ("loss", "accuracy"):
            names, steps, values = _lines(curves, quantity)
            if names:
                media[f"{prefix}/{quantity}_by_inner_step"] = wandb.plot.line_series(
                    xs=steps, ys=values, keys=names, title=f"query {quantity}", xname="inner step"
                )
        run.log({**media, "trainer/global_step": trainer.global_step})
        run.summary.update(_summary(results["rows"], prefix))


def log_checkpoint(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Logs the best checkpoint to every run at W&B: an artifact of type model named after the run.

    Warns if the run kept no best checkpoint.

    Args:
        trainer: at the end of its ``fit``.
        module: what was trained; its alpha and beta go with the artifact.
    """
    runs, callback = _runs(trainer), trainer.checkpoint_callback
    if not runs:
        return
    best = getattr(callback, "best_model_path", "")
    if not best:
        warnings.warn("wandb.checkpoint is ignored: this run kept no best one", stacklevel=2)
        return
    saved = torch.load(best, weights_only=True, map_location="cpu", mmap=True)
    metadata = {
        "alpha": getattr(module, "alpha", None),
        "beta": getattr(module, "beta", None),
        "step": saved["global_step"],
        "metric": getattr(callback, "monitor", None),
        "value": getattr(callback, "best", None),
    }
    for run in runs:
        import wandb

        # W&B's names of artifacts take no other characters.
        name = re.sub(r"[^\w.-]+", "-", run.name or run.id, flags=re.ASCII)
        artifact = wandb.Artifact(name, type="model", metadata=metadata)
        artifact.add_file(best)
        run.log_artifact(artifact)


def _runs(trainer: L.Trainer) -> list[Any]:
    """The runs that the process which writes logs to, each once: two loggers may share one."""
    if not trainer.is_global_zero:
        return []
    runs = [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return list({run.id: run for run in runs}.values())


def _quantities(row: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    return {key: value for key, value in row.items() if isinstance(value, dict) and "mean" in value}


def _summary(rows: list[dict[str, Any]], prefix: str) -> dict[str, float]:
    found = {}
    for row in rows:
        for quantity, value in _quantities(row).items():
            for part, suffix in (("mean", ""), ("low", "/low"), ("high", "/high")):
                number = value[part]
                if number is not None:
                    found[f"{prefix}/{row['method']}/{quantity}{suffix}"] = number
    return found


def _table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    quantities = list(dict.fromkeys(q for row in rows for q in _quantities(row)))
    parts = [(q, part) for q in quantities for part in ("mean", "low", "high")]
    columns = ["method", *(q if part == "mean" else f"{q} {part}" for q, part in parts)]
    data = [
        [METHODS.get(row["method"], row["method"])]
        + [(row.get(q) or {}).get(part) for q, part in parts]
        for row in rows
    ]
    return columns, data


def _lines(
    curves: dict[str, dict[str, Any]], quantity: str
) -> tuple[list[str], list[list[int]], list[list[float]]]:
    """Names, inner steps and means of each method; W&B draws no number that is not finite."""
    last = max((step for curve in curves.values() for step in curve["steps"]), default=0)
    names, steps, values = [], [], []
    for method, curve in curves.items():
        if quantity not in curve:
            continue
        at, means = curve["steps"], curve[quantity]["mean"]
        if len(at) == 1:  # a method that takes no steps
            at, means = [0, last], means * 2
        finite = [(s, m) for s, m in zip(at, means, strict=True) if math.isfinite(m)]
        if finite:
            names.append(METHODS.get(method, method))
            steps.append([s for s, _ in finite])
            values.append([m for _, m in finite])
    return names, steps, values
