from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from lightning_evolve.cli import repeat
from lightning_evolve.errors import UsageError


def results(seed: int) -> dict:
    def value(mean: float | None) -> dict:
        return {"mean": mean, "low": mean, "high": mean}

    def row(method: str, accuracy: float, steps: float | None) -> dict:
        return {
            "method": method,
            "accuracy": value(accuracy),
            "macro_f1": value(accuracy),
            "loss": value(1 - accuracy),
            "steps_to_target": value(steps),
        }

    rows = [
        row("evolved", 0.70 + seed / 100, 10),
        row("adam", 0.65 + seed / 100, 20 + seed),
        row("adam_groups", 0.70, 12),
        row("sgd", 0.5, None if seed else 40),
        row("floor", 0.4, None),
    ]
    return {"rows": rows, "seed": seed, "tasks": 30, "steps": 40, "config": {"ways": 5}}


@pytest.fixture
def fits(monkeypatch) -> list[list[str]]:
    """The calls of fit, which write results.json and nothing else."""
    calls = []

    def fit(command, check, env):
        arguments = command[3:]
        calls.append(arguments)
        path = Path(arguments[-1 - (arguments[-1] == "--ckpt_path=last")].partition("=")[2])
        assert env["PATH"], "the environment goes on to the runs"
        assert env["WANDB_RUN_GROUP"] == os.environ.get("WANDB_RUN_GROUP", path.parent.name)
        if any("fails" in a for a in arguments):
            return subprocess.CompletedProcess(command, 2)
        path.mkdir(parents=True, exist_ok=True)
        (path / "results.json").write_text(json.dumps(results(len(calls) - 1)))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(repeat.subprocess, "run", fit)
    return calls


def test_a_run_for_each_seed_and_a_summary(call, fits) -> None:
    got = call("repeat", "--seeds", "3", "--config", "tiny.yaml", "--alpha", "0.1")
    assert got.code == 0
    assert fits[1] == [
        "fit",
        "--config=tiny.yaml",
        "--model.init_args.alpha=0.1",
        "--seed=1",
        "--run_dir=runs/tiny-seeds/seed-1",
    ]
    assert "evolved (ours)" in got.out
    assert "over 3 seeds" in got.out
    summary = json.loads(Path("runs/tiny-seeds/summary.json").read_text())
    assert summary["seeds"] == [0, 1, 2]
    rows = {row["method"]: row for row in summary["rows"]}
    # By hand: 0.71 and Student's 4.303 times 0.01 / sqrt(3).
    assert rows["evolved"]["accuracy"]["mean"] == pytest.approx(0.71)
    assert rows["evolved"]["accuracy"]["high"] - 0.71 == pytest.approx(0.02484, abs=1e-4)
    assert rows["sgd"]["steps_to_target"]["mean"] is None
    assert rows["sgd"]["steps_to_target"]["by_seed"] == [40, None, None]
    assert summary["steps_ratio"]["adam"]["by_seed"] == pytest.approx([2.0, 2.1, 2.2])
    assert summary["steps_ratio"]["sgd"]["mean"] is None
    assert summary["accuracy_gain"]["adam_groups"]["mean"] == pytest.approx(0.01)
    assert summary["accuracy_gain"]["adam"]["low"] == pytest.approx(0.05)
    assert summary["accuracy_gain"]["floor"]["mean"] == pytest.approx(0.31)


def test_wandb_groups_the_seeds_unless_told_otherwise(call, fits, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    assert call("repeat", "--seeds=1", "--config", "tiny.yaml", "--wandb").code == 0
    assert "--wandb.mode=offline" in fits[0]
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert call("repeat", "--seeds=1", "--config", "tiny.yaml", "--run_dir=more").code == 0
    assert len(fits) == 2


def test_it_goes_on_where_it_was_interrupted(call, fits) -> None:
    call("repeat", "--seeds=1", "--config", "tiny.yaml", "--run_dir", "all")
    Path("all/seed-1").mkdir()
    (Path("all/seed-1") / "config.yaml").write_text("")
    assert call("repeat", "--seeds=3", "--config", "tiny.yaml", "--run_dir", "all").code == 0
    assert [c[-2:] for c in fits[1:]] == [
        ["--run_dir=all/seed-1", "--ckpt_path=last"],
        ["--seed=2", "--run_dir=all/seed-2"],
    ]


def test_a_failing_run_ends_it(call, fits) -> None:
    assert call("repeat", "--config", "tiny.yaml", "--data.fails=setup").code == 2
    assert len(fits) == 1


def test_seeds_of_other_options_are_not_mixed(fits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: A")
    assert repeat.run("repeat", ["--seeds", "1", "--config", "mine.yaml"]) == 0
    assert repeat.run("repeat", ["--seeds", "2", "--config", "mine.yaml"]) == 0
    assert len(fits) == 2
    with pytest.raises(UsageError, match=r"seeds that were run under other options.*options\.json"):
        repeat.run("repeat", ["--seeds", "3", "--config", "mine.yaml", "--alpha", "0.1"])
    Path("mine.yaml").write_text("model: B")
    with pytest.raises(UsageError, match="other options"):
        repeat.run("repeat", ["--seeds", "3", "--config", "mine.yaml"])
