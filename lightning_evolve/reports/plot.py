"""Adaptation curves as a picture: query loss and accuracy against the inner step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_evolve.files import replacing
from lightning_evolve.reports.table import METHODS

# Okabe and Ito's palette, which colour-blind people tell apart; the dashes serve black and white.
_STYLES: dict[str, tuple[str, Any]] = {
    "evolved": ("#D55E00", "-"),
    "sgd": ("#999999", ":"),
    "adam": ("#0072B2", "--"),
    "adam_groups": ("#009E73", "-."),
    "adamw": ("#CC79A7", (0, (1, 1))),
    "muon": ("#E69F00", (0, (4, 1, 1, 1, 1, 1))),
    "floor": ("#000000", (0, (6, 3))),
}
_OTHERS = ("#56B4E9", "#F0E442")


def plot_curves(curves: dict[str, dict[str, Any]], path: Path | str) -> None:
    """Draws one line a method with a 95% band, loss on the left and accuracy on the right.

    Args:
        curves: by method, ``steps`` (list of inner steps) and ``loss`` and ``accuracy``, each
            with lists ``mean``, ``low`` and ``high`` as long as ``steps``. A single step is
            drawn as a level line: a method that takes no steps.
        path: PNG file to write; one that exists is replaced.
    """
    # A figure of its own: pyplot's state is shared by the whole process and may open a window.
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    last = max(step for curve in curves.values() for step in curve["steps"])
    others = iter(_OTHERS * len(curves))
    for method, curve in curves.items():
        colour, dashes = _STYLES.get(method) or (next(others), "-")
        for panel, quantity in zip(panels, ("loss", "accuracy"), strict=True):
            if quantity not in curve:
                continue
            steps, band = curve["steps"], curve[quantity]
            if len(steps) == 1:
                steps, band = [0, last], {key: values * 2 for key, values in band.items()}
            panel.fill_between(steps, band["low"], band["high"], color=colour, alpha=0.15, lw=0)
            panel.plot(
                steps,
                band["mean"],
                color=colour,
                linestyle=dashes,
                linewidth=2.6 if method == "evolved" else 1.8,
                zorder=3 if method == "evolved" else 2,
                label=METHODS.get(method, method),
            )
    for panel, quantity in zip(panels, ("query loss (nats)", "query accuracy"), strict=True):
        panel.set_xlabel("inner step")
        panel.set_ylabel(quantity)
        panel.set_xlim(0, max(last, 1))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=150)
