"""What reaches Weights & Biases, read from the run as it is finished; no network."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
import yaml

HERE = Path(__file__).parent
DIGITS = """
model:
  class_path: EvolvingClassifier
  init_args: {learner: {class_path: CNN, init_args: {channels: [3, 4]}}, alpha: 0.01, steps: 2}
data:
  class_path: EpisodeStream
  init_args:
    source: digits
    encoder: {class_path: Pixels, init_args: {size: 8}}
    ways: 3
    val_tasks: 2
    test_tasks: 3
    class_fractions: [0.4, 0.3, 0.3]
comparison: {rivals: [adam], tuning_tasks: 1}
trainer: {max_steps: 2, accelerator: cpu, enable_progress_bar: false, val_check_interval: 2}
"""


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Iterator[list[Any]]:
    """Each run at W&B, with all that was logged to it."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    # Lightning's own offline run sets it for good; this puts it back.
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_MODE")
    seen: list[Any] = []
    logged: list[dict[str, Any]] = []
    artifacts: list[Any] = []
    finish, log, log_artifact = wandb.finish, wandb.Run.log, wandb.Run.log_artifact

    def keep(**options: Any) -> None:
        if run := wandb.run:
            kept = {name: getattr(run, name) for name in ("id", "name", "group", "job_type")}
            seen.append(
                SimpleNamespace(
                    **kept,
                    project=run.project,
                    config=dict(run.config.items()),
                    summary={key: run.summary[key] for key in run.summary.keys()},  # noqa: SIM118
                    logged=[*logged],
                    artifacts=[*artifacts],
                    files=Path(run.dir),
                    **options,
                )
            )
            logged.clear()
            artifacts.clear()
        finish(**options)

    def keep_log(self: wandb.Run, data: dict[str, Any], *args: Any, **options: Any) -> None:
        logged.append(data)
        log(self, data, *args, **options)

    def keep_artifact(self: wandb.Run, artifact: wandb.Artifact, **options: Any) -> Any:
        artifacts.append(artifact)
        return log_artifact(self, artifact, **options)

    monkeypatch.setattr(wandb, "finish", keep)
    monkeypatch.setattr(wandb.Run, "log", keep_log)
    monkeypatch.setattr(wandb.Run, "log_artifact", keep_artifact)
    wandb.teardown()  # it reads its variables once a session
    yield seen
    wandb.teardown()


def fit(call, *options: str) -> Any:
    return call("fit", "-c", "tiny.yaml", "--trainer.enable_progress_bar=false", *options)


def test_without_it_nothing_of_wandb_is_imported_and_nothing_connects(tiny) -> None:
    program = (
        "import socket, sys, standins\n"
        "from lightning_evolve.cli import main\n"
        "def connect(*args): raise AssertionError(f'connects to {args[1]}')\n"
        "socket.socket.connect = connect\n"
        "assert main(['fit', '--config', 'tiny.yaml']) == 0\n"
        "assert 'wandb' not in sys.modules\n"
    )
    got = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert got.returncode == 0, got.stderr


def test_offline_is_the_default_and_stays_in_the_directory(call, runs) -> None:
    began = time.monotonic()
    got = fit(call, "--wandb", "--alpha", "0.05")
    assert got.code == 0
    assert time.monotonic() - began < 15, "it waits for nothing"
    (run,) = runs
    folder = Path("runs/tiny/wandb").glob("offline-run-*")
    assert [f"{path}" for path in folder] == [got.out.partition("wandb sync ")[2].split("\n")[0]]
    assert not Path("wandb").exists()
    assert "wandb:" not in got.err + got.out
    assert "WANDB_MODE" not in os.environ, "a second run of this process may be online"
    assert (run.project, run.name, run.job_type) == ("lightning-evolve", "tiny", "fit")
    assert (run.group or None, run.exit_code) == (None, 0)
    written = yaml.safe_load(Path("runs/tiny/config.yaml").read_text())
    assert run.config["model"]["init_args"]["alpha"] == 0.05
    assert {name: run.config[name] for name in written} == written | {
        "model": run.config["model"],  # the seed, which is linked, is logged with it
        "data": run.config["data"],
    }


def test_every_metric_arrives_at_its_outer_step(call, runs) -> None:
    fit(call, "--wandb", "--trainer.max_steps=14", "--trainer.log_every_n_steps=2")
    with Path("runs/tiny/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for metric in ("train/loss", "val/loss"):
        written = [(int(row["step"]), float(row[metric])) for row in rows if row[metric]]
        # Lightning names a step by the batch it began with, from 0.
        logged = [
            (row["trainer/global_step"] + 1, row[metric]) for row in runs[0].logged if metric in row
        ]
        assert logged == written, metric
    assert len(logged) == 2
    assert runs[0].summary["train/loss"] == pytest.approx(float(rows[-1]["train/loss"]))


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({}, ["--wandb.project=other"], {"project": "other"}),
        ({"WANDB_PROJECT": "theirs"}, [], {"project": "theirs"}),
        ({"WANDB_PROJECT": "theirs"}, ["--wandb.project=other"], {"project": "other"}),
        (
            {"WANDB_RUN_GROUP": "g", "WANDB_JOB_TYPE": "j", "WANDB_NAME": "n", "WANDB_RUN_ID": "i"},
            [],
            {"group": "g", "job_type": "j", "name": "n", "id": "i"},
        ),
        # As an agent starts a run.
        (
            {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "i"},
            [],
            {"group": "s", "job_type": "sweep", "id": "i"},
        ),
        (
            {"WANDB_SWEEP_ID": "s", "WANDB_RUN_GROUP": "g", "WANDB_JOB_TYPE": "j"},
            [],
            {"group": "g", "job_type": "j"},
        ),
    ],
)
def test_wandbs_variables_hold(variables, options, expected, call, runs, monkeypatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()
    assert fit(call, "--wandb=offline", *options).code == 0
    assert {name: getattr(runs[0], name) for name in expected} == expected


def test_an_agents_parameters_are_arguments_and_never_wandb_config(call, runs, monkeypatch) -> None:
    Path("parameters.yaml").write_text(
        "wandb_version: 1\nmodel.init_args.alpha: {value: 0.7}\nsteps: {value: 9}\n"
    )
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "parameters.yaml")
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    # W&B's mode stands above "online", for runs that an agent of a test starts.
    assert fit(call, "--wandb=online", "--model.init_args.alpha=0.05").code == 0
    assert runs[0].config["model.init_args.alpha"] == 0.7, "as W&B would have it"
    assert runs[0].config["model"]["init_args"]["alpha"] == 0.05
    written = yaml.safe_load(Path("runs/tiny/config.yaml").read_text())
    assert written["model"]["init_args"]["alpha"] == 0.05


def test_a_run_that_goes_on_is_the_same_run(call, runs) -> None:
    fit(call, "--wandb")
    fit(call, "--wandb")
    assert (
        call("fit", "--run_dir=runs/tiny", "--ckpt_path=last", "--trainer.max_steps=12").code == 0
    )
    call("test", "--run_dir=runs/tiny")
    first, other, second, tested = runs
    assert first.id == second.id
    assert len({first.id, other.id, tested.id}) == 3
    assert tested.job_type == "test"
    steps = [row["trainer/global_step"] for row in second.logged if "train/loss" in row]
    assert steps == [8, 9, 10, 11]
    assert len(list(Path("runs/tiny/wandb").glob(f"offline-run-*-{first.id}*"))) == 2
    # The id of a killed run is there, although it finished nothing.
    assert Path("runs/tiny/wandb/run_id").read_text().strip() == first.id


@pytest.mark.parametrize(
    "options",
    [
        ["--wandb"],
        [
            "--trainer.logger=WandbLogger",
            "--trainer.logger.offline=true",
            "--trainer.logger.save_dir=mine",
        ],
    ],
    ids=["ours", "configured"],
)
def test_the_table_and_the_curves(options, call, runs) -> None:
    Path("digits.yaml").write_text(DIGITS)
    assert call("fit", "-c", "digits.yaml", *options).code == 0
    (run,) = runs
    results = json.loads(Path("runs/digits/results.json").read_text())
    expected = {
        f"test/{row['method']}/{quantity}{suffix}": row[quantity][part]
        for row in results["rows"]
        for quantity in ("accuracy", "macro_f1", "loss", "steps_to_target")
        for part, suffix in (("mean", ""), ("low", "/low"), ("high", "/high"))
        if row[quantity][part] is not None
    }
    assert "test/evolved/accuracy" in expected
    assert "test/floor/loss" not in expected
    # The summary holds what W&B's charts are made of, too.
    assert {name: run.summary[name] for name in expected} == pytest.approx(expected)
    (media,) = [row for row in run.logged if "test/table" in row]
    assert media["trainer/global_step"] == 2
    (table,) = run.files.glob("media/table/test/table_*.json")
    content = json.loads(table.read_text())
    assert content["columns"][:2] == ["method", "accuracy"]
    assert [line[0] for line in content["data"]] == ["evolved (ours)", "Adam, tuned", "no learning"]
    assert content["data"][0][1] == results["rows"][0]["accuracy"]["mean"]
    for quantity in ("loss", "accuracy"):
        (chart,) = run.files.glob(f"media/table/test/{quantity}_by_inner_step_table_*.json")
        points = json.loads(chart.read_text())["data"]
        for name, row in zip(("evolved (ours)", "Adam, tuned"), results["rows"], strict=False):
            line = [(step, value) for step, line, value in points if line == name]
            assert [step for step, _ in line] == [0, 1, 2]
            assert line[-1][1] == row[quantity]["mean"]
    (picture,) = run.files.glob("media/images/test/curves_*.png")
    assert picture.read_bytes() == Path("runs/digits/curves.png").read_bytes()


def test_a_diverged_method_has_a_gap_and_one_without_steps_a_level_line() -> None:
    from lightning_evolve.reports.wandb import _lines

    curves = {
        "evolved": {"steps": [0, 1, 2], "loss": {"mean": [1.0, float("nan"), 0.5]}},
        "sgd": {"steps": [0, 1], "loss": {"mean": [float("nan"), float("inf")]}},
        "floor": {"steps": [0], "loss": {"mean": [0.9]}},
        "adam": {"steps": [0, 1], "accuracy": {"mean": [0.1, 0.2]}},
    }
    assert _lines(curves, "loss") == (
        ["evolved (ours)", "no learning"],
        [[0, 2], [0, 2]],
        [[1.0, 0.5], [0.9, 0.9]],
    )


def test_the_checkpoint_is_an_artifact_on_request(call, runs) -> None:
    fit(call, "--wandb", "--run_dir=my run")
    fit(call, "--wandb", "--wandb.checkpoint=true", "--run_dir=my run 2")
    assert not runs[0].artifacts
    (artifact,) = runs[1].artifacts
    assert (artifact.name.partition(":")[0], artifact.type) == ("my-run-2", "model")
    best = Path("my run 2/checkpoints/best.ckpt")
    assert [(f, e.size) for f, e in artifact.manifest.entries.items()] == [
        ("best.ckpt", best.stat().st_size)
    ]
    assert artifact.metadata == {
        "alpha": 0.1,
        "beta": None,
        "step": 6,
        "metric": "val/loss",
        "value": pytest.approx(runs[1].summary["val/loss"]),
    }
    with pytest.warns(UserWarning, match=r"^wandb.checkpoint is ignored: this run kept no best"):
        fit(call, "--wandb", "--wandb.checkpoint=true", "--trainer.limit_val_batches=0")


def test_settings_without_a_run_are_ignored_in_one_line(call, runs, recwarn) -> None:
    # YAML reads a bare off as False.
    Path("off.yaml").write_text("wandb: {mode: off, project: x}\n")

    def ignored() -> list[str]:
        said = [str(w.message) for w in recwarn if "ignored" in str(w.message)]
        recwarn.clear()
        return said

    assert fit(call, "-c", "off.yaml", "--wandb.checkpoint=true").code == 0
    because = "ignored, because W&B is off; give --wandb offline"
    assert ignored() == [f"wandb.project and wandb.checkpoint are {because}"]
    assert not list(Path("runs").glob("*/wandb"))
    fit(call, "--wandb.checkpoint=true")
    assert ignored() == [f"wandb.checkpoint is {because}"]
    fit(call, "--wandb", "--wandb.project=x", "--wandb.checkpoint=true")
    fit(call)
    assert ignored() == []
    # A quick try logs nothing anywhere.
    assert fit(call, "--wandb", "--trainer.fast_dev_run=true").code == 0
    assert len(runs) == 1


def test_a_run_that_fails_is_marked_so(call, runs) -> None:
    assert "fails is setup" in fit(call, "--wandb", "--data.fails=setup").mistake
    assert not Path("runs").exists()
    assert fit(call, "--wandb", "--model.interrupt_at=3").code == 130
    assert [run.exit_code for run in runs] == [1, 1]
    # What the trainer refuses begins no run.
    fit(call, "--wandb", "--trainer.max_steps=-5")
    assert len(runs) == 2


@pytest.mark.slow
def test_online_without_a_network_is_one_line(call, runs, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    wandb.teardown()
    began = time.monotonic()
    got = fit(call, "--wandb", "online")
    assert got.code == 2
    assert time.monotonic() - began < 60
    (line,) = [line for line in got.err.splitlines() if line.startswith("lightning-evolve")]
    assert line.startswith("lightning-evolve: error: W&B says: ")
    assert line.endswith("; use --wandb offline")
    assert "Traceback" not in got.err
    assert not Path("runs").exists()


def test_online_waits_no_longer_than_its_variable_says(call, runs, monkeypatch) -> None:
    asked = []

    def refuse(**options: Any) -> None:
        asked.append(options["settings"].model_fields_set)
        asked.append(options["settings"].init_timeout)
        raise wandb.errors.CommError("no\nserver.")

    monkeypatch.setattr(wandb, "init", refuse)
    assert fit(call, "--wandb=online").mistake == "W&B says: no server; use --wandb offline"
    assert asked[1] == 20
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "300")
    fit(call, "--wandb=online")
    assert "init_timeout" not in asked[2], "left to the variable"
