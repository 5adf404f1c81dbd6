"""What only processes of their own can show."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, Forked

pytestmark = pytest.mark.slow

PATH = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])


def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "lightning_evolve", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=240
    )


def full_names(config: Path) -> None:
    text = config.read_text()
    for name in ("TinyTasks", "TinyModel"):
        text = text.replace(name, f"standins.{name}")
    config.write_text(text)


def test_two_processes_share_one_directory_and_one_of_them_logs(tiny) -> None:
    full_names(tiny / "tiny.yaml")
    (tiny / "runs/tiny").mkdir(parents=True)
    options = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    logging = ["--wandb", "--wandb.checkpoint=true"]
    staging = str(tiny / "staging")
    got = start("fit", "--config", "tiny.yaml", *options, *logging, WANDB_DATA_DIR=staging)
    assert got.returncode == 0, got.stderr
    assert got.stdout.count("wandb sync") == 1
    assert len([*(tiny / "runs/tiny-2/wandb").glob("offline-run-*/*.wandb")]) == 1
    assert got.stdout.count("run directory: runs/tiny-2") == 1
    assert sorted(p.name for p in (tiny / "runs").iterdir()) == ["tiny", "tiny-2"]
    assert not any((tiny / "runs/tiny").iterdir())
    with (tiny / "runs/tiny-2/metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row["train/loss"]]) == 8
    options.append("--run_dir=runs/tiny-2")
    predict = ["predict", "--config", "tiny.yaml", *options]
    process = Forked(*predict, cwd=tiny, variables={"PYTHONPATH": PATH})
    out, err = process.communicate(240)
    assert process.returncode == 0, err
    # Both processes of this stand-in see all tasks; a real stream shares them out.
    assert "54 predictions in runs/tiny-2/predictions.csv" in out


def test_a_mistake_from_the_shell(tiny) -> None:
    full_names(tiny / "tiny.yaml")
    got = start("fit", "--config", "tiny.yaml", "--trainer.max_stpes=3")
    assert got.returncode == 2
    assert got.stdout == ""
    assert got.stderr.count("\n") == 1
    assert got.stderr.startswith("lightning-evolve: error: unknown key 'trainer.max_stpes'")
