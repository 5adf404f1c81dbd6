"""Runs that several processes share, started in each of the ways that there are.

What torchrun and Lightning start are processes from the beginning; the command that Lightning
starts them from is a fork of this process.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_evolve.cli import main
from tests.modules.small import difference
from tests.processes import ROOT, Forked, free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc"),
]

CONFIG = """
model:
  class_path: EvolvingClassifier
  init_args:
    learner: {class_path: CNN, init_args: {channels: [3, 4]}}
    estimator: {class_path: Unrolled}
    theta: persistent
    alpha: 0.01
    steps: 2
data:
  class_path: EpisodeStream
  init_args:
    source: digits
    encoder: {class_path: Pixels, init_args: {size: 8}}
    ways: 3
    shots: 2
    queries: 3
    tasks_per_step: 4
    steps_per_epoch: 10
    val_tasks: 1 # at 2 processes one has none
    class_fractions: [0.4, 0.3, 0.3]
comparison: {enabled: false}
checkpoints: {every_n_train_steps: 5}
trainer: {max_steps: 20, accelerator: cpu, log_every_n_steps: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    (path / "small.yaml").write_text(CONFIG)
    return path


def fit(folder, *options, **variables):
    return Forked("fit", "--config=small.yaml", *options, cwd=folder, variables=variables)


def torchrun(folder, processes, *options):
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    launcher += [f"--master-port={free_port()}", "-m", "lightning_evolve"]
    return subprocess.Popen(
        [sys.executable, *launcher, "fit", "--config=small.yaml", *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, seconds=240):
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()  # where it goes on for too long
    return process.returncode, out, err


def ended(run):
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    numbers = dict(last["state_dict"])
    for kind, tensors in last["lightning_evolve"]["state"]["accumulators"].items():
        numbers |= {f"{kind}.{name}": t for name, t in tensors.items()}
    return last["global_step"], numbers


def table(run):
    with (run / "metrics.csv").open() as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def alone(folder):
    # In this process, so that what it imports need not be imported in each fork.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config=small.yaml", "--run_dir=alone"]) == 0
    return folder / "alone"


def check_same_run(run, alone):
    (steps, numbers), (expected_steps, expected) = ended(run), ended(alone)
    assert steps == expected_steps == 20
    assert difference(numbers, expected) < 1e-6
    rows, expected_rows = table(run), table(alone)
    assert [row.keys() for row in rows] == [row.keys() for row in expected_rows]
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected_row, abs=1e-5)


def test_torchrun(folder, alone):
    options = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    # Without --run_dir: processes that torchrun starts inherit no choice of a directory.
    code, out, err = finish(torchrun(folder, 2, *options))
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("run directory: ")]
    check_same_run(folder / line.removeprefix("run directory: "), alone)


def test_lightning_starts_the_processes(folder, alone):
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--run_dir=lightning"]
    code, _, err = finish(fit(folder, *options))
    assert code == 0, err
    check_same_run(folder / "lightning", alone)


def test_slurm_starts_the_processes(folder, alone):
    """What srun sets on two nodes with one task each; Lightning detects it by itself."""
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "small",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_LOCALID": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    options = ["--trainer.devices=1", "--trainer.num_nodes=2", "--trainer.strategy=ddp"]
    processes = [
        fit(folder, *options, "--run_dir=slurm", **slurm, SLURM_PROCID=rank, SLURM_NODEID=rank)
        for rank in ("0", "1")
    ]
    for code, _, err in map(finish, processes):
        assert code == 0, err
    check_same_run(folder / "slurm", alone)


def children(process: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def ranks_of(process: int) -> list[int]:
    """The processes that another has started to train."""
    return [c for c in children(process) if b"lightning_evolve" in command_of(c)]


def command_of(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_rows(run, rows, process, seconds=200):
    end = time.monotonic() + seconds
    path = run / "metrics.csv"
    while not path.exists() or path.read_bytes().count(b"\n") < rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("launcher", "victim"), [("lightning", 1), ("lightning", 0), ("torchrun", 0)]
)
def test_a_rank_that_dies_ends_the_run(folder, launcher, victim):
    name = f"{launcher}-{victim}"
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", f"--run_dir={name}"]
    endless = [*options, "--trainer.max_steps=100000"]
    process = torchrun(folder, 2, *endless) if launcher == "torchrun" else fit(folder, *endless)
    wait_for_rows(folder / name, 25, process)
    ranks = ranks_of(process.pid)
    if launcher == "lightning":
        ranks = [process.pid, *ranks]
    assert len(ranks) == 2
    os.kill(ranks[victim], signal.SIGKILL)
    began = time.monotonic()
    code, _, _ = finish(process)
    assert code != 0
    while any(map(alive, ranks)):
        assert time.monotonic() - began < 240, "the other process went on"
        time.sleep(0.05)
    step, _ = ended(folder / name)
    assert step >= 20
    # It goes on from there: alone, for the number of processes does not matter.
    rest = ["--ckpt_path=last", f"--trainer.max_steps={step + 3}", f"--run_dir={name}"]
    code, _, err = finish(fit(folder, *rest))
    assert code == 0, err
    assert ended(folder / name)[0] == step + 3
