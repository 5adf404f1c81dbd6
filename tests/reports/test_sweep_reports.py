from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from rich.console import Console

from lightning_evolve.reports import print_results
from lightning_evolve.reports.heat_map import plot_heat_map
from lightning_evolve.reports.sweep_table import ranked, sweep_table
from lightning_evolve.sweeps import Distribution, Metric, Trial

RATES = {
    "model.init_args.alpha": Distribution("log_uniform_values", {"min": 0.001, "max": 1.0}),
    "model.init_args.beta": Distribution("log_uniform_values", {"min": 0.001, "max": 1.0}),
}
CHOICES = {
    "rule": Distribution("categorical", {"values": ["Gains", "Linear"]}),
    "estimator": Distribution("categorical", {"values": ["Unrolled", "FirstOrder"]}),
}


def trial(number: int, objective: float | None, state: Any = "finished", *values: Any) -> Trial:
    names = RATES if not values or isinstance(values[0], float) else CHOICES
    chosen = values or (10.0 ** -(number % 3), 10.0 ** -(number // 3))
    return Trial(number, dict(zip(names, chosen, strict=True)), state, objective)


TRIALS = [
    trial(0, -0.9),
    trial(1, -0.5),
    trial(2, -0.8, "stopped"),
    trial(3, None, "failed"),
    trial(4, None),
    trial(5, -0.7),
    trial(6, -800.0),
    trial(7, None, "running"),
    trial(8, -0.6),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What was drawn by which method of Matplotlib's axes."""
    calls: dict[str, list[Any]] = {"scatter": [], "pcolormesh": [], "annotate": []}
    for name in calls:
        original = getattr(Axes, name)

        def keep(self, *args, _name=name, _original=original, **options):
            if "zorder" in options or _name == "annotate":  # not the bar of the colours
                calls[_name].append((args, options))
            return _original(self, *args, **options)

        monkeypatch.setattr(Axes, name, keep)
    return calls


def labelled(drawn: dict[str, list[Any]]) -> dict[str, int]:
    return {options["label"]: len(args[0]) for args, options in drawn["scatter"]}


def test_ranks_go_by_the_goal() -> None:
    assert [t.number for t in ranked(TRIALS, "maximize")] == [1, 8, 5, 0, 6, 2, 4, 7, 3]
    assert [t.number for t in ranked(TRIALS, "minimize")][:2] == [6, 0]


def test_the_table_of_a_sweep() -> None:
    console = Console(file=io.StringIO(), width=80)
    TRIALS[7].history = [[-3.0, -2.0, -2.5]]
    metric = Metric("val/reward", "maximize")
    table = sweep_table(ranked(TRIALS, "maximize"), list(RATES), metric)
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert ["run", "alpha", "beta", "state", "best", "val/reward", "seconds"] in [
        line.split() for line in lines
    ]
    rows = [line.split() for line in lines if line.startswith(" run-")]
    assert rows[0] == ["run-001", "0.1", "1", "finished", "-0.5000", "-"]
    assert rows[-1][3:] == ["failed", "-", "-"]
    assert rows[-2][3:] == ["running", "-2.0000", "-"], "the best so far"


def test_a_heat_map(tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    path = tmp_path / "map.png"
    plot_heat_map(TRIALS, RATES, "val/reward", "maximize", path)
    assert imread(path).std() > 0.1
    assert labelled(drawn) == {"run": 5, "stopped early": 1, "best: run-001": 1, "no result": 2}
    (best,) = [args for args, options in drawn["scatter"] if "best" in options["label"]]
    assert (best[0][0], best[1][0]) == pytest.approx((0.1, 1))
    ((across, _, surface), options) = drawn["pcolormesh"][0]
    assert across[0] == pytest.approx(0.01)
    assert across[-1] == pytest.approx(1)
    assert np.nanmax(surface) == pytest.approx(-0.5, abs=0.02)
    # One bad run takes neither the colours nor its neighbourhood.
    assert options["norm"].vmin > -3
    assert np.nanmin(surface) == pytest.approx(options["norm"].vmin)


def test_the_colours_between_are_even_on_the_axes(
    tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    """Between equal corners of a plane of logarithms, the middle is the geometric mean."""
    corners = [(0.01, 0.01), (1.0, 0.01), (0.01, 1.0), (1.0, 1.0), (0.1, 0.1)]
    plane = [trial(n, np.log10(a * b), "finished", a, b) for n, (a, b) in enumerate(corners)]
    plot_heat_map(plane, RATES, "m", "minimize", tmp_path / "map.png")
    ((across, up, surface), _) = drawn["pcolormesh"][0]
    expected = np.log10(across)[None, :] + np.log10(up)[:, None]
    assert np.nanmax(np.abs(surface - expected)) < 1e-6


@pytest.mark.parametrize(
    "trials",
    [
        TRIALS[:3],
        [trial(n, -float(n), "finished", 0.1, 10.0**-n) for n in range(3)] * 2,
        [trial(n, -float(n), "finished", 10.0**-n, 10.0**-n) for n in range(3)] * 2,
    ],
    ids=["few", "one alpha", "a line"],
)
def test_no_colours_where_points_span_no_plane(
    tmp_path: Path, drawn: dict[str, list[Any]], trials: list[Trial]
) -> None:
    plot_heat_map(trials, RATES, "m", "maximize", tmp_path / "map.png")
    assert drawn["pcolormesh"] == []
    assert (tmp_path / "map.png").exists()


def test_a_heat_map_of_choices(tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    pairs = [("Gains", "Unrolled"), ("Linear", "Unrolled"), ("Gains", "FirstOrder")]
    trials = [trial(n, -float(n), "finished", *pair) for n, pair in enumerate(pairs)]
    plot_heat_map(trials, CHOICES, "m", "maximize", tmp_path / "map.png")
    cells = drawn["pcolormesh"][0][0][2]
    assert cells.tolist()[0] == [0, -1]
    assert cells[1][0] == -2
    assert np.isnan(cells[1][1])
    assert [args[0] for args, _ in drawn["annotate"]] == ["-0", "-1", "-2"]


def test_other_numbers_of_parameters(tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    alpha = dict([*RATES.items()][:1])
    plot_heat_map(TRIALS, alpha, "m", "maximize", tmp_path / "one.png")
    assert drawn["scatter"][0][0][1].tolist() == [-0.9, -0.5, -0.7, -800.0, -0.6]
    # With a third one that varies, what lies between two points means nothing.
    steps = Distribution("int_uniform", {"min": 1, "max": 9})
    plot_heat_map(TRIALS, {**RATES, "steps": steps}, "m", "maximize", tmp_path / "three.png")
    assert drawn["pcolormesh"] == []
    nothing = [trial(0, None, "failed"), trial(1, None)]
    plot_heat_map(nothing, RATES, "m", "maximize", tmp_path / "none.png")
    assert labelled(drawn)["no result"] == 2


def test_without_adam_nobody_has_steps_to_its_best() -> None:
    def value(mean: float | None) -> dict[str, float | None]:
        return {"mean": mean, "low": None, "high": None}

    row = {"method": "evolved", "accuracy": value(0.7), "steps_to_target": value(None)}
    for rival, shown in ((None, False), ("sgd", False), ("adam", True)):
        rows = [row] if rival is None else [row, {**row, "method": rival}]
        console = Console(file=io.StringIO(), width=80)
        print_results({"rows": rows}, console)
        assert ("Adam's best" in console.file.getvalue()) == shown
        assert ("never" in console.file.getvalue()) == shown


def test_a_stepped_logarithmic_axis_may_begin_at_zero(tmp_path: Path) -> None:
    clip = Distribution("q_log_uniform_values", {"min": 0.4, "max": 20, "q": 1})
    parameters = {"clip": clip, **{"beta": RATES["model.init_args.beta"]}}
    chosen = ({"clip": float(n), "beta": 0.01 * (n + 1)} for n in range(3))
    trials = [Trial(n, values, "finished", 0.5) for n, values in enumerate(chosen)]
    plot_heat_map(trials, parameters, "val/loss", "minimize", tmp_path / "map.png")
    assert (tmp_path / "map.png").exists()
