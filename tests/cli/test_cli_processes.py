"""What only processes of their own can show."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lightning_evolve", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=120
    )


def full_names(config: Path) -> None:
    text = config.read_text()
    for name in ("TinyTasks", "TinyModel"):
        text = text.replace(name, f"standins.{name}")
    config.write_text(text)


def test_two_processes_share_one_directory(tiny) -> None:
    full_names(tiny / "tiny.yaml")
    (tiny / "runs/tiny").mkdir(parents=True)
    options = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    got = start("fit", "--config", "tiny.yaml", *options)
    assert got.returncode == 0, got.stderr
    assert got.stdout.count("run directory: runs/tiny-2") == 1
    assert sorted(p.name for p in (tiny / "runs").iterdir()) == ["tiny", "tiny-2"]
    assert not any((tiny / "runs/tiny").iterdir())
    with (tiny / "runs/tiny-2/metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row["train/loss"]]) == 8
    options.append("--run_dir=runs/tiny-2")
    got = start("predict", "--config", "tiny.yaml", *options)
    assert got.returncode == 0, got.stderr
    # Both processes of this stand-in see all tasks; a real stream shares them out.
    assert "54 predictions in runs/tiny-2/predictions.csv" in got.stdout


def test_a_mistake_from_the_shell(tiny) -> None:
    full_names(tiny / "tiny.yaml")
    got = start("fit", "--config", "tiny.yaml", "--trainer.max_stpes=3")
    assert got.returncode == 2
    assert got.stdout == ""
    assert got.stderr.count("\n") == 1
    assert got.stderr.startswith("lightning-evolve: error: unknown key 'trainer.max_stpes'")
