"""The table at the end of a run: one method a row, mean and 95% interval."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

METHODS = {
    "evolved": "evolved (ours)",
    "sgd": "SGD, tuned",
    "adam": "Adam, tuned",
    "adam_groups": "Adam, 2 tuned groups",
    "adamw": "AdamW, tuned",
    "muon": "Muon, tuned",
    "classifier": "Classifier",
    "floor": "no learning",
}
"""What a person calls the methods of ``results.json``, in the order of the table."""

# Key in results.json, heading, whether less is better, decimals.
_COLUMNS = (
    ("accuracy", "accuracy", False, 3),
    ("macro_f1", "macro F1", False, 3),
    ("loss", "loss", True, 3),
    ("steps_to_target", "steps to\nAdam's best", True, 1),
)


def print_results(
    results: dict[str, Any], console: Console | None = None, *, over: str = "tasks"
) -> None:
    """Prints the rows of ``results.json`` as a table with the best value of each column in bold.

    Args:
        results: as in ``results.json``: ``rows``, ``tasks``, ``seed``, ``steps``, ``family``.
        console: where to print, standard output if not given.
        over: what the means and intervals are taken over.
    """
    console = console or Console()
    rows = sorted(results["rows"], key=_place)
    # No lines between columns: the table fits a terminal of 80 characters.
    table = Table(
        title=f"Held-out data: {family}" if (family := results.get("family")) else "Held-out data",
        caption=_caption(results, over),
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    # Nobody runs towards Adam's best where Adam was left out of the rivals.
    columns = _COLUMNS if any(row["method"] == "adam" for row in rows) else _COLUMNS[:-1]
    table.add_column("method", no_wrap=True)
    for _, heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    best = {key: _best(rows, key, lower, digits) for key, _, lower, digits in columns}
    for row in rows:
        cells = []
        for key, _, _, digits in columns:
            text = _cell(row.get(key), digits, key == "steps_to_target" and row["method"])
            mean = _mean(row, key)
            is_best = mean is not None and f"{mean:.{digits}f}" == best[key]
            cells.append(f"[bold green]{text}[/]" if is_best else text)
        table.add_row(METHODS.get(row["method"], row["method"]), *cells)
    console.print(table)


def _place(row: dict[str, Any]) -> int:
    known = list(METHODS)
    return known.index(row["method"]) if row["method"] in known else len(known)


def _caption(results: dict[str, Any], over: str) -> str:
    # On ordinary data the test split is one task of many rows, and the intervals are over those.
    rows = results.get("rows_tested")
    if rows is not None and over == "tasks":
        over = "rows"
    counts = (rows, "test rows") if rows is not None else (results.get("tasks"), "tasks")
    named = (counts, (results.get("steps"), "inner steps"))
    parts = [f"{count} {name}" for count, name in named if count is not None]
    if results.get("seed") is not None:
        parts.append(f"seed {results['seed']}")
    return ", ".join(parts) + f"; mean ± 95% interval over {over}"


def _mean(row: dict[str, Any], key: str) -> float | None:
    value: float | None = (row.get(key) or {}).get("mean")
    return value


def _best(rows: list[dict[str, Any]], key: str, lower: bool, digits: int) -> str | None:
    means = [mean for row in rows if (mean := _mean(row, key)) is not None]
    # Compared as shown, so that all that look alike are marked alike.
    return f"{min(means) if lower else max(means):.{digits}f}" if means else None


def _cell(value: dict[str, Any] | None, digits: int, method: str | bool) -> str:
    mean = (value or {}).get("mean")
    if value is None or mean is None:
        seeds = (value or {}).get("by_seed") or []
        if there := sum(one is not None for one in seeds):
            return f"{there} of {len(seeds)}"  # seeds got there
        # The floor takes no steps; whoever takes steps and has no number never got there.
        return "never" if method and method != "floor" and value is not None else "-"
    low, high = value.get("low"), value.get("high")
    if low is None or high is None or low == high:  # a single value has no interval
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ±{(high - low) / 2:.{digits}f}"
