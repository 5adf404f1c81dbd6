"""The table of a sweep: one trial a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lightning_evolve.sweeps import Metric, Trial

_STYLES = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red"}


def ranked(trials: Sequence[Trial], goal: Literal["minimize", "maximize"]) -> list[Trial]:
    """Sorts trials, the best first: finished ones, then stopped ones, then those without objective.

    Args:
        trials: in any order.
        goal: what is better of the objective.
    """

    def place(trial: Trial) -> tuple[int, float, int]:
        order = ("finished", "stopped", "running", "failed").index(trial.state)
        if trial.objective is None or order > 1:
            return order + 2, 0.0, trial.number
        better = trial.objective if goal == "minimize" else -trial.objective
        return order, better, trial.number

    return sorted(trials, key=place)


def sweep_table(trials: Sequence[Trial], names: Sequence[str], metric: Metric) -> Table:
    """Makes the table.

    Args:
        trials: in the order of the rows.
        names: the parameters to show: those that vary.
        metric: the objective; trials that run show the best so far.
    """
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("run", no_wrap=True)
    for short in shortened(names):
        table.add_column(short, justify="right", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column(f"best {metric.name}", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for trial in trials:
        objective = trial.so_far(metric.goal)
        table.add_row(
            run_name(trial),
            *(cell(trial.parameters[name]) for name in names),
            Text(trial.state, style=_STYLES[trial.state]),
            "-" if objective is None else f"{objective:.4f}",
            f"{trial.seconds:.0f}" if trial.seconds else "-",
        )
    return table


def run_name(trial: Trial) -> str:
    """Returns the name of a trial's directory."""
    return f"run-{trial.number:03d}"


def cell(value: Any) -> str:
    """Returns a parameter as a table shows it; the journal has all its digits.

    Example:
        >>> cell(0.0123456), cell("Gains"), cell(3)
        ('0.01235', 'Gains', '3')
    """
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def shortened(names: Sequence[str]) -> list[str]:
    """Returns the last parts of dotted names, as many as tell them apart.

    Example:
        >>> shortened(["model.init_args.alpha", "data.init_args.ways"])
        ['alpha', 'ways']
        >>> shortened(["model.encoder.size", "data.encoder.size"])
        ['model.encoder.size', 'data.encoder.size']
    """
    parts = [name.split(".") for name in names]
    length = 1
    while len({tuple(p[-length:]) for p in parts}) < len(set(names)):
        length += 1
    return [".".join(p[-length:]) for p in parts]
