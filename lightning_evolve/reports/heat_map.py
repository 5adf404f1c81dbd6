"""A sweep as a picture: the objective over its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from lightning_evolve.files import replacing
from lightning_evolve.reports.sweep_table import cell, ranked, run_name, shortened

if TYPE_CHECKING:
    from lightning_evolve.sweeps import Distribution, Trial

# Fewer points than this span no surface worth looking at.
_ENOUGH = 5
_RESOLUTION = 200
_BEST, _MISSING, _PLAIN = "#D55E00", "#CC3311", "#0072B2"


class _Axis:
    """A parameter on an axis: its value, the logarithm of it, or the place of a category.

    Args:
        name: of the parameter.
        distribution: what it is drawn from.
    """

    def __init__(self, name: str, distribution: Distribution) -> None:
        self.name = name
        self.categories: list[str] = []
        if not distribution.numeric:
            self.categories = [cell(value) for value in distribution.choices() or ()]
        ends = (
            np.array([distribution.at(0.0), distribution.at(1.0)]) if distribution.ordered else ()
        )
        self.bounds = ends if len(ends) and np.isfinite(ends).all() else None
        # Stepped, the smallest value of a logarithmic distribution may be 0.
        positive = not len(ends) or min(ends) > 0
        self.logarithmic = not self.categories and (
            (distribution.logarithmic and positive) or _spans_decades(distribution)
        )

    def places(self, trials: Sequence[Trial]) -> np.ndarray:
        """Where trials lie, in units in which the axis is even."""
        values = [trial.parameters[self.name] for trial in trials]
        if self.categories:
            return np.array([self.categories.index(cell(value)) for value in values], dtype=float)
        numbers = np.array(values, dtype=float)
        return np.log10(numbers) if self.logarithmic else numbers

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """What Matplotlib wants to be told for a place."""
        numbers: np.ndarray = 10**places if self.logarithmic else places
        return numbers

    def of(self, trials: Sequence[Trial]) -> np.ndarray:
        """Where Matplotlib is to draw trials."""
        return self.numbers(self.places(trials))


def plot_heat_map(
    trials: Sequence[Trial],
    parameters: Mapping[str, Distribution],
    metric: str,
    goal: Literal["minimize", "maximize"],
    path: Path | str,
) -> None:
    """Draws the objective over the first two parameters that vary, numbers before categories.

    Trials are points coloured by objective, the best one has a star around it, and those without
    an objective are crosses. Where only these two vary, the colour between the points is
    interpolated inside their hull, or fills the cells of two categorical axes. Of a single
    parameter the objective is the other axis.

    Args:
        trials: the trials; those that are running are left out.
        parameters: distribution by name; at least one of them varies.
        metric: name of the objective.
        goal: what is better.
        path: PNG file to write; one that exists is replaced.
    """
    varying = [name for name, distribution in parameters.items() if distribution.varies]
    assert varying, "nothing varies in a sweep of one choice"
    chosen = sorted(varying, key=lambda name: not parameters[name].numeric)[:2]
    axes = [_Axis(name, parameters[name]) for name in chosen]
    # A figure of its own: pyplot's state is shared by the whole process and may open a window.
    figure = Figure(figsize=(7, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    _dress(panel, axes, shortened(chosen))
    ended = [trial for trial in trials if trial.state != "running"]
    known = [trial for trial in ended if trial.objective is not None]
    missing = [trial for trial in ended if trial.objective is None]
    if len(axes) == 1:
        panel.set_ylabel(f"best {metric}")
        panel.grid(alpha=0.3)
        _draw_points(panel, lambda some: (axes[0].of(some), _objective(some)), known, goal, _PLAIN)
        # On the lower edge: they have no height.
        where = axes[0].of(missing), np.full(len(missing), 0.02)
        _draw_crosses(panel, where, transform=panel.get_xaxis_transform())
    else:
        x, y = axes
        colours: dict[str, Any] | None = None
        if known:
            norm = _norm(_objective(known), goal)
            # Bright is good.
            colours = {"cmap": "viridis" if goal == "maximize" else "viridis_r", "norm": norm}
            if len(varying) == 2:
                _fill(panel, x, y, known, colours)
            figure.colorbar(
                ScalarMappable(**colours),
                ax=panel,
                label=f"best {metric}",
                extend=_beyond(_objective(known), norm),
            )
        _draw_points(panel, lambda some: (x.of(some), y.of(some)), known, goal, colours)
        _draw_crosses(panel, (x.of(missing), y.of(missing)))
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=150)


def _dress(panel: Any, axes: Sequence[_Axis], labels: Sequence[str]) -> None:
    """Labels, scales and ticks."""
    for axis, label, side in zip(axes, labels, "xy", strict=False):
        count = len(axis.categories)
        options: dict[str, Any] = {f"{side}label": label}
        if axis.logarithmic:
            options[f"{side}scale"] = "log"
        if count:
            options |= {
                f"{side}ticks": range(count),
                f"{side}ticklabels": axis.categories,
                f"{side}lim": (-0.5, count - 0.5),
            }
        if axis.bounds is not None:
            # All that was searched, and some room for the points on its edge.
            ends = np.log10(axis.bounds) if axis.logarithmic else axis.bounds
            room = 0.03 * np.ptp(ends)
            options[f"{side}lim"] = axis.numbers(ends + np.array([-room, room]))
        panel.set(**options)
        if axis.logarithmic:
            line = getattr(panel, f"{side}axis")
            decades = np.ptp(np.log10(line.get_view_interval()))
            line.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
            line.set_major_formatter(FormatStrFormatter("%g"))
            line.set_minor_formatter(NullFormatter())


def _draw_points(
    panel: Any,
    where: Callable[[Sequence[Trial]], tuple[np.ndarray, np.ndarray]],
    known: Sequence[Trial],
    goal: Literal["minimize", "maximize"],
    colours: dict[str, Any] | str | None,
) -> None:
    """A point a trial, and a star around the best."""
    for state, marker, label in (("finished", "o", "run"), ("stopped", "v", "stopped early")):
        some = [trial for trial in known if trial.state == state]
        if some:
            filled = {"c": _objective(some), **colours} if isinstance(colours, dict) else {}
            plain = {"c": colours} if isinstance(colours, str) else {}
            panel.scatter(
                *where(some), marker=marker, s=55, ec="k", zorder=3, label=label, **filled, **plain
            )
    first = [trial for trial in ranked(known, goal) if trial.state == "finished"][:1]
    if first:
        panel.scatter(
            *where(first),
            marker="*",
            s=380,
            c="none",
            ec=_BEST,
            linewidths=1.8,
            zorder=4,
            label=f"best: {run_name(first[0])}",
        )


def _draw_crosses(panel: Any, where: tuple[np.ndarray, np.ndarray], **options: Any) -> None:
    """Trials that failed or diverged."""
    if len(where[0]):
        panel.scatter(*where, marker="x", s=55, c=_MISSING, zorder=3, label="no result", **options)


def _fill(panel: Any, x: _Axis, y: _Axis, known: Sequence[Trial], colours: dict[str, Any]) -> None:
    """Colours the plane between the points, where that means something."""
    places, objective, norm = [x.places(known), y.places(known)], _objective(known), colours["norm"]
    if x.categories and y.categories:
        cells = np.full((len(y.categories), len(x.categories)), np.nan)
        cells[places[1].astype(int), places[0].astype(int)] = objective
        panel.pcolormesh(
            range(len(x.categories)), range(len(y.categories)), cells, zorder=1, **colours
        )
        for across, up, value in zip(*places, objective, strict=True):
            panel.annotate(
                f"{value:.3g}",
                (across, up),
                (0, -14),
                textcoords="offset points",
                ha="center",
                va="top",
                bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 1.5},
            )
        return
    spread = np.array([np.ptp(line) for line in places])
    if x.categories or y.categories or len(known) < _ENOUGH or not (spread > 0).all():
        return
    from scipy.interpolate import griddata
    from scipy.spatial import QhullError

    lines = [np.linspace(line.min(), line.max(), _RESOLUTION) for line in places]
    points = np.stack(places, axis=-1) / spread
    with suppress(QhullError):  # all points may lie on one line
        # What is too bad for the colours would drag its whole neighbourhood out of them.
        heights = np.clip(objective, norm.vmin, norm.vmax)
        surface = griddata(points, heights, np.stack(np.meshgrid(*lines), axis=-1) / spread)
        panel.pcolormesh(
            x.numbers(lines[0]),
            y.numbers(lines[1]),
            surface,
            zorder=1,
            alpha=0.8,
            rasterized=True,
            **colours,
        )


def _objective(trials: Sequence[Trial]) -> np.ndarray:
    return np.array([trial.objective for trial in trials], dtype=float)


def _norm(objective: np.ndarray, goal: Literal["minimize", "maximize"]) -> Normalize:
    """Colours from the best to far behind the median: one bad run does not take them all."""
    best = objective.max() if goal == "maximize" else objective.min()
    low, high = sorted((best, best + 4 * (np.median(objective) - best)))
    low, high = max(low, objective.min()), min(high, objective.max())
    return Normalize(low, high) if low < high else Normalize(low - 0.5, high + 0.5)


def _beyond(objective: np.ndarray, norm: Normalize) -> str:
    """At which end of the colours there are values that they do not reach."""
    assert norm.vmin is not None
    assert norm.vmax is not None
    if objective.min() < norm.vmin:
        return "min"
    return "max" if objective.max() > norm.vmax else "neither"


def _spans_decades(distribution: Distribution) -> bool:
    """Whether listed numbers are better seen on a logarithmic axis."""
    if distribution.name not in ("categorical", "categorical_w_probabilities"):
        return False
    listed = distribution.choices() or ()
    return min(listed) > 0 and math.log10(max(listed) / min(listed)) >= 1.5
