from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from lightning_evolve.cli import sweep as command
from lightning_evolve.cli.run_directory import hold
from lightning_evolve.sweeps import expand
from tests.processes import ROOT

DIGITS = """
model:
  class_path: EvolvingClassifier
  init_args:
    learner: {class_path: CNN, init_args: {channels: [3, 4]}}
    estimator: {class_path: FirstOrder}
    steps: 2
data:
  class_path: EpisodeStream
  init_args:
    source: digits
    encoder: {class_path: Pixels, init_args: {size: 8}}
    ways: 3
    val_tasks: 2
    test_tasks: 2
    class_fractions: [0.4, 0.3, 0.3]
trainer: {max_steps: 2, val_check_interval: 1, accelerator: cpu}
"""
SWEEP: dict[str, Any] = {
    "program": "lightning_evolve",
    "method": "random",
    "metric": {"name": "val/reward", "goal": "maximize"},
    "parameters": {
        "model.init_args.alpha": {"distribution": "log_uniform_values", "min": 1e-3, "max": 0.1},
        "model.init_args.beta": {"distribution": "log_uniform_values", "min": 1e-3, "max": 0.1},
    },
    "command": [
        *("${env}", "${interpreter}", "-m", "${program}", "fit"),
        *("--config", "digits.yaml", "--comparison.rivals=[]", "--wandb=online", "${args}"),
    ],
}


@pytest.fixture
def write(tiny):
    """Writes a sweep file and its experiment into the working directory."""
    (tiny / "digits.yaml").write_text(DIGITS)

    def write(**changes: object) -> str:
        (tiny / "s.yaml").write_text(yaml.safe_dump({**SWEEP, **changes}, sort_keys=False))
        return "s.yaml"

    return write


@pytest.fixture
def fits(monkeypatch) -> list[dict[str, Any]]:
    """Runs end at once: what they are started with, and metrics and results in their place."""
    calls: list[dict[str, Any]] = []

    class Ended:
        def __init__(self, arguments, *, env, stdout, **options) -> None:
            calls.append({"arguments": arguments, "env": env})
            names = dict(a.removeprefix("--").split("=", 1) for a in arguments if "=" in a)
            self.run, self.code, self.pid = Path(names["run_dir"]), 0, -1
            alpha = float(names["model.init_args.alpha"])
            if alpha == 0.5:
                stdout.write(b"ways is 99; there are 4 classes\n")
                self.code = 2
                return
            self.run.mkdir(parents=True)
            (self.run / "metrics.csv").write_text(f"step,val/reward\r\n1,{-alpha}\r\n")
            (self.run / "results.json").write_text("{}")

        def poll(self) -> int:
            return self.code

    monkeypatch.setattr("lightning_evolve.sweeps.runner.subprocess.Popen", Ended)
    monkeypatch.setattr("lightning_evolve.sweeps.runner._PAUSE", 0)
    for name in ("OMP_NUM_THREADS", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def no_map(monkeypatch) -> None:
    """Leaves out the heat map, which takes most of the time of a sweep whose runs end at once."""
    monkeypatch.setattr("lightning_evolve.reports.heat_map.plot_heat_map", lambda *_: None)


def record(directory: str = "runs/s-sweep") -> dict[str, Any]:
    return json.loads(Path(directory, "sweep.json").read_text())


def values(*numbers: float) -> dict[str, Any]:
    return {"model.init_args.alpha": {"values": list(numbers)}}


# -------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({}, ["--count", "0"], "--count is 0; give a number of at least 1"),
        ({}, ["--jobs=0"], "--jobs is 0;"),
        ({}, ["--seeds", "-1"], "--seeds is -1;"),
        ({}, ["--count", "many"], "--count is many;"),
        ({}, ["--ckpt_path=last"], "sweep chooses --ckpt_path for each run; leave it out"),
        ({}, ["--seeds=2", "--seed=1"], "--seeds 2 chooses the seeds; leave out --seed"),
        ({}, ["--wandb=yes"], "--wandb is yes; give off, offline or online"),
        ({"method": "gird"}, [], "s.yaml: there is no method 'gird'; did you mean 'grid'?"),
        (
            {"parameters": {"model.init_args.alhpa": {"value": 0.1}}},
            [],
            "unknown key 'alhpa'; did you mean 'alpha'?",
        ),
        ({"parameters": {"model.init_args.alpha": {"value": "much"}}}, [], "much"),
        (
            {"parameters": {"model.init_args.estimator": {"values": ["Unrolled", "Exact"]}}},
            [],
            "Exact",
        ),
        (
            {"parameters": {"model.init_args.alpha": {"min": -0.5, "max": 0.5}}},
            [],
            "the sweep can choose model.init_args.alpha=-0.499: alpha is -0.499; give a finite",
        ),
        (
            {"metric": {"name": "val/rewrad"}},
            [],
            "EvolvingClassifier never logs 'val/rewrad'; did you mean 'val/reward'?",
        ),
        ({}, ["--data.source=nowhere", "--model.steps=x"], "steps"),
        ({}, ["--config", "none.yaml"], "cannot read the config file none.yaml"),
        ({}, ["--trainer.fast_dev_run=true"], "trainer.fast_dev_run leaves no results"),
        ({}, ["--comparison.enabled=false"], "comparison.enabled is false"),
        ({"command": ["${interpreter}", "train.py", "${args}"]}, [], "runs -m lightning_evolve"),
        (
            {"command": ["${interpreter}", "-m", "${program}", "test"]},
            [],
            "-m lightning_evolve fit",
        ),
        (
            {"command": ["${interpreter}", "-m", "${program}", "fit", "--config=digits.yaml"]},
            [],
            "command does not take model.init_args.alpha: trials would differ in nothing",
        ),
        (
            {"parameters": {"seed_everything": {"values": [1, 2]}}},
            ["--seeds=2"],
            "the sweep varies the seed itself",
        ),
        ({}, ["--resume"], "there is no sweep runs/s-sweep; leave out --resume"),
        ({}, ["--resume", "--run_dir=none"], "none is no sweep to go on with"),
    ],
)
def test_mistakes_are_told_before_any_run(call, write, fits, changes, arguments, said) -> None:
    assert said in call("sweep", write(**changes), *arguments).mistake
    assert fits == []
    assert not Path("runs").exists()


def test_the_file_comes_first(call, write) -> None:
    assert "lightning-evolve sweep FILE" in call("sweep").mistake
    assert "lightning-evolve sweep FILE" in call("sweep", "--model.steps", "3", write()).mistake
    assert "cannot read the sweep file none.yaml" in call("sweep", "none.yaml").mistake


# -------------------------------------------------------------------- sweeping


def test_a_sweep_and_what_it_says(call, write, fits) -> None:
    got = call("sweep", write(), "--count=3", "--jobs=2", "--steps", "3", "--seed=4")
    assert got.code == 0, got
    assert len(fits) == 3
    start = [*fits[1]["arguments"]]
    assert start[:5] == ["/usr/bin/env", sys.executable, "-m", "lightning_evolve", "fit"]
    assert start[5:7] == ["--config=digits.yaml", "--comparison.rivals=[]"]
    assert start[9:] == [
        "--model.init_args.steps=3",
        "--seed_everything=4",
        "--seed=4",
        "--wandb=off",
        "--run_dir=runs/s-sweep/run-001",
    ]
    assert fits[1]["env"]["WANDB_RUN_GROUP"] == "s"
    assert fits[1]["env"]["WANDB_JOB_TYPE"] == "sweep"
    trials = record()["trials"]
    best = min(trials, key=lambda trial: trial["parameters"]["model.init_args.alpha"])
    lines = got.out.splitlines()
    table = [line for line in lines if line.startswith(" run-")]
    assert table[0].startswith(f" run-00{best['number']}"), "the best comes first"
    assert Path("runs/s-sweep/heat_map.png").stat().st_size > 10_000
    assert Path("runs/s-sweep/sweep.yaml").read_text() == Path("s.yaml").read_text()
    shown = lines.index(f"best: run-00{best['number']}  val/reward {best['objective']:.6g}")
    environment, *again = shlex.split(lines[shown + 1])
    assert environment.startswith("OMP_NUM_THREADS=")
    assert again[:4] == ["lightning-evolve", "fit", *start[5:7]]
    for name, value in best["parameters"].items():
        assert f"--{name}={value!r}" in again
    assert again[-2:] == ["--model.init_args.steps=3", "--seed=4"]
    assert lines[shown + 3].startswith("lightning-evolve repeat --seeds 5 --config=digits.yaml --m")
    assert "rivals" not in lines[shown + 3]
    assert "seed_everything" not in lines[shown + 3]


@pytest.mark.usefixtures("no_map")
def test_a_grid_goes_through_all_with_several_seeds(call, write, fits) -> None:
    file = write(method="grid", parameters=values(0.1, 0.2))
    assert call("sweep", file, "--seeds", "2", "--run_dir=all", "--wandb").code == 0
    directories = [c["arguments"][-1].removeprefix("--run_dir=all/") for c in fits]
    assert directories == [f"run-00{t}/seed-{s}" for t in (0, 1) for s in (0, 1)]
    assert fits[1]["arguments"][-3:-1] == ["--seed=1", "--wandb=offline"]


@pytest.mark.usefixtures("no_map")
def test_run_cap_and_count(call, write, fits) -> None:
    call("sweep", write(run_cap=2))
    assert len(fits) == 2
    call("sweep", write(run_cap=2), "--count=3")
    assert len(fits) == 5
    assert Path("runs/s-sweep-2/run-002").is_dir()


@pytest.mark.usefixtures("no_map")
def test_the_seed_may_be_what_varies(call, write, fits) -> None:
    both = {**values(0.1), "seed_everything": {"values": [3, 5]}}
    got = call("sweep", write(method="grid", parameters=both))
    assert got.code == 0
    assert [[a for a in c["arguments"] if "seed" in a] for c in fits] == [
        ["--seed_everything=3"],
        ["--seed_everything=5"],
    ]
    assert "--seed_everything=3\n" in got.out


@pytest.mark.usefixtures("no_map")
def test_a_run_that_fails(call, write, fits) -> None:
    file = write(method="grid", parameters=values(0.1, 0.5, 0.2))
    got = call("sweep", file)
    assert got.code == 1
    assert got.err == "lightning-evolve: run-001 failed: ways is 99; there are 4 classes\n"
    assert "best: run-000" in got.out
    assert [t["state"] for t in record()["trials"]] == ["finished", "failed", "finished"]
    got = call("sweep", file, "--resume")
    assert got.code == 1
    assert [c["arguments"][-1][-3:] for c in fits] == ["000", "001", "002", "001"]


@pytest.mark.usefixtures("no_map")
def test_an_interrupted_sweep_says_how_to_go_on(call, write, fits, monkeypatch) -> None:
    class Interrupting(command.Runner):
        def _over(self, trial) -> None:
            super()._over(trial)
            if trial.number == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "Runner", Interrupting)
        got = call("sweep", write(), "--count=5", "--model.steps", "3", "--run_dir", "a b")
    assert got.code == 130
    said, again = got.err.split("; go on by: ")
    assert said == "lightning-evolve: interrupted"
    assert call(*shlex.split(again)[1:]).code == 0
    assert [c["arguments"][-1] for c in fits] == [f"--run_dir=a b/run-00{n}" for n in range(5)]
    assert (
        len({trial["parameters"]["model.init_args.alpha"] for trial in record("a b")["trials"]})
        == 5
    )
    call("sweep", "s.yaml", "--model.steps=3", "--run_dir=a b", "--resume", "--count=6")
    assert len(fits) == 6


@pytest.mark.usefixtures("no_map")
def test_another_sweep_cannot_go_on_in_its_place(call, write, fits) -> None:
    call("sweep", write(), "--count=1", "--run_dir=here")
    assert (
        "here exists and is not empty; choose another"
        in call("sweep", "s.yaml", "--run_dir=here").mistake
    )
    on = ["--run_dir=here", "--resume"]
    assert (
        "its runs have no options for fit, and not --model.init_args.steps=3"
        in call("sweep", "s.yaml", *on, "--steps=3").mistake
    )
    assert (
        "its trials have --seeds 1, and not 2" in call("sweep", "s.yaml", *on, "--seeds=2").mistake
    )
    lock = hold(Path("here"))
    assert "another process" in call("sweep", "s.yaml", *on).mistake
    lock.release()
    write(description="other")
    assert "s.yaml is not the file that it was begun with" in call("sweep", "s.yaml", *on).mistake
    assert len(fits) == 1


# -------------------------------------------------------------------- real runs


@pytest.mark.slow
def test_real_runs_and_the_printed_command(call, write, monkeypatch) -> None:
    """One run of two fails; the other one comes again, bit for bit."""
    for name, value in {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    file = write(method="grid", parameters=values(0.01, -1.0))
    got = call("sweep", file, "--jobs", "2")
    assert got.code == 1, got
    assert got.err.startswith("lightning-evolve: run-001 failed: alpha is -1.0; give a finite")
    states = [trial["state"] for trial in record()["trials"]]
    assert states == ["finished", "failed"]
    lines = got.out.splitlines()
    (number,) = [line.split()[1] for line in lines if line.startswith("best: ")]
    (again,) = [line for line in lines if "lightning-evolve fit" in line]
    assert call(*shlex.split(again)[2:], "--run_dir=again").code == 0
    for name in ("results.json", "metrics.csv"):
        assert Path("again", name).read_bytes() == Path("runs/s-sweep", number, name).read_bytes()


@pytest.mark.slow
def test_a_run_that_an_agent_starts(call, write, tmp_path, monkeypatch) -> None:
    """With the variables that W&B's agent sets; test_sweep_command has its expansion."""
    config = yaml.safe_load(Path(write()).read_text())
    chosen = {"model.init_args.alpha": 0.0123, "model.init_args.beta": 0.07}
    words = expand(config["command"], config["program"], chosen, sys.executable)
    assert words[:4] == ["/usr/bin/env", sys.executable, "-m", "lightning_evolve"]
    in_file = {name: {"value": value} for name, value in chosen.items()}
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump({"wandb_version": 1, **in_file}))
    variables = {
        "WANDB_MODE": "offline",
        "WANDB_SWEEP_ID": "abcdefgh",
        "WANDB_RUN_ID": "r1234567",
        "WANDB_SWEEP_PARAM_PATH": str(params),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it reads its variables once a session
    try:
        got = call(*words[4:])
    finally:
        wandb.teardown()
    assert got.code == 0, got
    model = yaml.safe_load(Path("runs/digits/config.yaml").read_text())["model"]["init_args"]
    assert (model["alpha"], model["beta"]) == (0.0123, 0.07)
    assert Path("runs/digits/results.json").exists()
    assert list(Path("runs/digits/wandb").glob("offline-run-*-r1234567"))
