"""Generations for people: the live table, the comparison with simpler ways, and the plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from lightning_evolve.evolution.journal import Generation

WAYS = {
    "champion": "evolved (ours)",
    "never": "never retrain",
    "always": "always promote",
    "scratch": "retrain from scratch",
}
"""What a person calls the ways to live with a stream, in the order of the table."""

_VERDICTS = {"founded": "cyan", "promoted": "green", "kept": "yellow"}


# Heading and width of each column but the last, which has what is left of the line.
_COLUMNS = (("", 4), ("records", 7), ("arriving", 8), ("new", 6), ("old", 6), ("CPU s", 6))


def generation_row(generation: Generation, *, heading: bool, champion: bool = False) -> Table:
    """A generation as a row of a table that grows line by line.

    *arriving* is the accuracy of the champion on the new records before anything is learned from
    them; *new* and *old* are those of whoever is champion afterwards, on held-out rows that the
    champion before had not learned, and that it had.

    Args:
        generation: finished, or in progress.
        heading: whether the headings stand over it.
        champion: whether its model is the one in use, which gets a star.
    """
    table = Table(box=box.SIMPLE_HEAD if heading else None, pad_edge=False, show_header=heading)
    for name, width in _COLUMNS:
        table.add_column(name, justify="right", width=width, no_wrap=True)
    table.add_column("verdict", width=11, no_wrap=True)
    table.add_column("why", overflow="fold")
    figures, verdict = generation.summary, generation.verdict or "in progress"
    table.add_row(
        f"{'*' if champion else ''}{generation.number}",
        str(figures.get("records", "")),
        share(figures.get("arriving")),
        share(figures.get("new_accuracy")),
        share(figures.get("old_accuracy")),
        f"{figures.get('seconds', 0.0):.1f}",
        f"[{_VERDICTS.get(verdict, 'white')}]{verdict}[/]",
        "\n".join(escape(reason) for reason in generation.reasons),
    )
    return table


def comparison(generations: Sequence[Generation]) -> dict[str, dict[str, Any]]:
    """What each way came to, by its key in ``WAYS``.

    Args:
        generations: finished ones, in order.

    Returns:
        ``arriving``: accuracy on new records before they are learned, one a generation from the
        second on; ``new`` and ``old``: after the last generation, on held-out rows; ``seconds``:
        CPU time of all training. None where there is nothing to measure.
    """
    later = [g for g in generations if g.verdict in ("promoted", "kept")]
    if not later:
        return {}
    first = generations[0].summary.get("seconds", 0.0)
    ways: dict[str, dict[str, Any]] = {
        "champion": {
            "arriving": [g.summary.get("arriving") for g in later],
            "new": later[-1].summary.get("new_accuracy"),
            "old": later[-1].summary.get("old_accuracy"),
            "seconds": first + sum(g.summary.get("seconds", 0.0) for g in later),
        }
    }
    for name in later[-1].summary.get("beside", {}):
        entries = [g.summary["beside"][name] for g in later if name in g.summary["beside"]]
        ways[name] = {
            "arriving": [entry["arriving"] for entry in entries],
            "new": entries[-1]["new"],
            "old": entries[-1]["old"],
            "seconds": first + sum(entry["seconds"] for entry in entries),
        }
    return {name: ways[name] for name in WAYS if name in ways}


def print_comparison(ways: dict[str, dict[str, Any]], console: Console) -> None:
    """Prints the ways side by side.

    Args:
        ways: see :func:`comparison`.
        console: where to.
    """
    table = Table(
        title="The same stream, other ways",
        caption="arriving: accuracy on new records before they are learned, mean over generations",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("way")
    for heading in ("arriving", "new, at the end", "old, at the end", "CPU s"):
        table.add_column(heading, justify="right")
    for name, way in ways.items():
        known = [value for value in way["arriving"] if value is not None]
        table.add_row(
            WAYS[name],
            share(sum(known) / len(known) if known else None),
            share(way["new"]),
            share(way["old"]),
            f"{way['seconds']:.1f}",
        )
    console.print(table)


def plot_generations(generations: Sequence[Generation], path: Path) -> None:
    """Draws the accuracy on arriving records over the generations, promotions marked.

    Args:
        generations: finished ones, in order.
        path: PNG file to write; one that exists is replaced.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from lightning_evolve.files import replacing

    styles = {
        "champion": ("#D55E00", "-"),
        "never": ("#999999", ":"),
        "always": ("#0072B2", "--"),
        "scratch": ("#009E73", "-."),
    }
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    later = [g for g in generations if g.verdict in ("promoted", "kept")]
    numbers = [g.number for g in later]
    for name, way in comparison(generations).items():
        colour, dashes = styles[name]
        values = [math.nan if value is None else value for value in way["arriving"]]
        panel.plot(numbers, values, color=colour, linestyle=dashes, label=WAYS[name], linewidth=2)
        if name == "champion":
            marks = [
                (number, value)
                for number, value, g in zip(numbers, values, later, strict=True)
                if g.verdict == "promoted"
            ]
            if marks:
                panel.scatter(
                    *zip(*marks, strict=True), color=colour, zorder=3, label="promoted after it"
                )
    panel.set_xlabel("generation")
    panel.set_ylabel("accuracy on arriving records")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def share(value: float | None) -> str:
    """A share of rows, a dash where there is none.

    >>> share(0.5), share(None)
    ('0.500', '-')
    """
    return "-" if value is None else f"{value:.3f}"
