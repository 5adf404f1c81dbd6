from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (
            "meta_step.py --learners cnn --orders first --tasks 1 --shots 1 --steps 1 --rounds 2",
            "autograd",
        ),
        ("black_box.py --learners head --steps 2 --rounds 2", "REINFORCE"),
        ("detectors.py --seeds 1", "Page-Hinkley"),
    ],
)
def test_a_glance(
    command: str,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script, *arguments = command.split()
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert shown in capsys.readouterr().out


def test_memory_and_time_of_an_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    milliseconds, mebibytes = runpy.run_path(str(FOLDER / "unroll.py"))["estimate"]("Reptile", 5)
    assert milliseconds > 0
    assert mebibytes > 0
