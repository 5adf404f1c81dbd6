from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from lightning_evolve.files import free, replacing, write_json
from lightning_evolve.reports import plot_curves, print_results


def value(mean: float | None, half: float = 0.0) -> dict[str, float | None]:
    if mean is None:
        return {"mean": None, "low": None, "high": None}
    return {"mean": mean, "low": mean - half, "high": mean + half}


def row(method: str, accuracy: float, loss: float | None, steps: float | None) -> dict:
    return {
        "method": method,
        "accuracy": value(accuracy, 0.0123),
        "macro_f1": value(accuracy, 0.01),
        "loss": value(loss),
        "steps_to_target": value(steps, 1),
    }


RESULTS = {
    "rows": [
        row("floor", 0.5, None, None),
        row("adam", 0.7, 1.0, 20),
        row("evolved", 0.7004, 0.9, 7),
        row("sgd", 0.6, 1.2, None),
        row("mystery", 0.1, 3.0, 40),
    ],
    "tasks": 30,
    "seed": 4,
    "steps": 20,
}


def shown(results: dict, **options: object) -> str:
    console = Console(file=io.StringIO(), **{"width": 80, **options})
    print_results(results, console)
    return console.file.getvalue()


def test_the_table_fits_a_terminal_of_eighty() -> None:
    lines = shown(RESULTS).splitlines()
    assert not any("…" in line for line in lines)
    assert max(len(line.rstrip()) for line in lines) <= 80
    methods = [line.split("  ")[0].strip() for line in lines if "±" in line and "." in line]
    assert methods == ["evolved (ours)", "SGD, tuned", "Adam, tuned", "no learning", "mystery"]
    by_method = {line.split("  ")[0].strip(): line.split() for line in lines}
    assert by_method["evolved (ours)"][2:4] == ["0.700", "±0.012"]
    assert by_method["SGD, tuned"][-1] == "never"
    assert by_method["no learning"][-1] == "-", "the floor takes no steps"
    assert "30 tasks, 20 inner steps, seed 4; mean ± 95% interval over tasks" in shown(RESULTS)


def test_what_looks_best_is_marked_alike() -> None:
    text = shown(RESULTS, force_terminal=True, color_system="standard")
    marked = [line for line in text.splitlines() if "\x1b[1;32m0.700 ±0.012" in line]
    assert len(marked) == 2
    assert "\x1b[1;32m     7.0 ±1.0" in text or "\x1b[1;32m7.0 ±1.0" in text


def test_nothing_known_but_the_accuracy() -> None:
    text = shown({"rows": [{"method": "evolved", "accuracy": {"mean": 0.25}}]})
    assert "0.250" in text
    assert "±" not in text.splitlines()[5]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    band = {"mean": [1.0, 0.5], "low": [0.9, 0.4], "high": [1.1, 0.6]}
    curve = {"steps": [0, 10], "loss": band, "accuracy": band}
    level = {"steps": [0], "accuracy": {"mean": [0.4], "low": [0.3], "high": [0.5]}}
    plot_curves({"evolved": curve, "new": curve, "floor": level}, tmp_path / "curves.png")
    picture = imread(tmp_path / "curves.png")
    assert picture.shape[1] > 1000
    assert picture[..., :3].min() < 0.2, "not blank"
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_files_are_replaced_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"x": float("nan")})
    with pytest.raises(IsADirectoryError), replacing(path) as temporary:
        temporary.write_text("half") and tmp_path.read_text()
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.stat().st_mode & 0o044, "readable like any file"


def test_free_names(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    for name in ("test.json", "test-2.json", "test-3.json"):
        assert free(path).name == name
        free(path).touch()


def test_what_some_seeds_never_reached_is_told_and_one_value_has_no_interval():
    from lightning_evolve.reports.table import _cell

    none = {"mean": None, "low": None, "high": None}
    assert _cell({**none, "by_seed": [5.0, None, 5.0]}, 1, "adam") == "2 of 3"
    assert _cell({**none, "by_seed": [None, None]}, 1, "adam") == "never"
    assert _cell({"mean": 0.5, "low": 0.5, "high": 0.5}, 3, "adam") == "0.500"
