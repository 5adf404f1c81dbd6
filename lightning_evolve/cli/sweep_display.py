"""What a sweep shows while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightning_evolve.sweeps import Metric, Trial

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live


@contextmanager
def display(names: Sequence[str], metric: Metric, count: int | None) -> Iterator[_Display]:
    """Shows a table that lives as long as the block, on a terminal; else a line a finished trial.

    Args:
        names: the parameters that vary.
        metric: the objective.
        count: of trials, if that is known.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        yield _Display(console, names, metric, count, None)
        return
    # The final table, in another order, takes the place of this one.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield _Display(console, names, metric, count, live)


class _Display:
    def __init__(
        self,
        console: Console,
        names: Sequence[str],
        metric: Metric,
        count: int | None,
        live: Live | None,
    ) -> None:
        self._console, self._names, self._metric, self._count = console, names, metric, count
        self._live, self._ended = live, 0

    def refresh(self, trials: Sequence[Trial]) -> None:
        """Shows the trials in the order in which they began."""
        if self._live:
            from lightning_evolve.reports.sweep_table import sweep_table

            table = sweep_table(trials, self._names, self._metric)
            of = f" of {self._count}" if self._count is not None else ""
            ended = sum(trial.state != "running" for trial in trials)
            table.caption = f"{ended}{of} ended"
            self._live.update(table, refresh=True)

    def ended(self, trial: Trial) -> None:
        """Prints a line about a trial that is over."""
        if self._live:
            return
        from lightning_evolve.reports.sweep_table import cell, run_name, shortened

        values = [
            f"{short} {cell(trial.parameters[name])}"
            for name, short in zip(self._names, shortened(self._names), strict=True)
        ]
        outcome = trial.reason or f"{self._metric.name} {trial.objective}"
        line = f"{run_name(trial)} {trial.state}: {', '.join(values)}: {outcome}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
