"""The runner, on runs that are over in milliseconds."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lightning_evolve.cli.run_directory import locked
from lightning_evolve.errors import UsageError
from lightning_evolve.sweeps import Hyperband, Metric, Sweep, Trial, runner
from lightning_evolve.sweeps.devices import cuda_devices
from lightning_evolve.sweeps.journal import Journal
from lightning_evolve.sweeps.objective import best, logged
from lightning_evolve.sweeps.runner import Runner, threads

TRAINEE = Path(__file__).parent / "trainee.py"


@dataclass
class Listed:
    """A search that proposes what it was given."""

    points: list[dict[str, Any]]

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Any] | None:
        assert number == len(trials)
        return self.points[number] if number < len(self.points) else None


@dataclass
class Watch:
    """A display that counts, and does something at each look."""

    act: Callable[[Sequence[Trial]], None] = lambda trials: None
    over: list[int] = field(default_factory=list)

    def refresh(self, trials: Sequence[Trial]) -> None:
        self.act(trials)

    def ended(self, trial: Trial) -> None:
        self.over.append(trial.number)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_PAUSE", 0.01)
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)


def command(parameters: dict[str, Any], seed: int | None) -> list[str]:
    options = [f"--{name}={value}" for name, value in parameters.items()]
    return [sys.executable, "-S", str(TRAINEE), *options, f"--seed={seed}"]


def sweep(early: Hyperband | None = None) -> Sweep:
    metric = Metric("val/reward", "maximize")
    return Sweep("rates", "random", metric, {}, "p", ["c"], early, None, "text")


def journal(folder: Path, seeds: Sequence[int | None] = (0,), count: int | None = None) -> Journal:
    return Journal(folder / "sweep.json", list(seeds), [], 0, count)


def run(
    record: Journal,
    points: list[dict[str, Any]],
    *,
    jobs: int = 2,
    early: Hyperband | None = None,
    watch: Watch | None = None,
) -> list[Trial]:
    Runner(
        sweep(early),
        Listed(points),
        record,
        jobs=jobs,
        command=command,
        occupied=locked,
        display=watch or Watch(),
        environment={"WANDB_RUN_GROUP": "rates"},
    ).run()
    # As text, in which not-a-number is itself.
    assert repr(Journal.load(record.path)) == repr(record), "the journal has all of it"
    return record.trials


def said(folder: Path, name: str = "run-000") -> list[dict[str, Any]]:
    """What each process of a run was started with."""
    lines = (folder / f"{name}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_each_trial_is_a_run_in_a_directory_of_its_own(tmp_path: Path) -> None:
    watch = Watch()
    trials = run(journal(tmp_path, count=3), [{"x": x} for x in (1, 3, 2, 5)], watch=watch)
    assert [trial.objective for trial in trials] == [1, 3, 2], "the best, not the last, of each"
    assert {trial.state for trial in trials} == {"finished"}
    assert sorted(watch.over) == [0, 1, 2]
    assert (tmp_path / "run-002" / "results.json").exists()
    assert not (tmp_path / "run-003").exists(), "count is 3"
    assert trials[1].history == [[2, 3, 2.5]]


def test_a_grid_ends_by_itself(tmp_path: Path) -> None:
    assert len(run(journal(tmp_path), [{"x": 1}, {"x": 2}])) == 2


@pytest.mark.parametrize("jobs", [1, 3])
def test_as_many_at_a_time_as_asked(tmp_path: Path, jobs: int) -> None:
    run(journal(tmp_path), [{"x": 1, "pause": 0.1}] * 5, jobs=jobs)
    spans = [json.loads(p.read_text()) for p in tmp_path.glob("run-*/times.json")]
    assert len(spans) == 5
    at_once = max(sum(a <= start < b for a, b in spans) for start, _ in spans)
    assert at_once == jobs


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    kinds = ["fails", "killed", "empty", "silent", "diverges", ""]
    trials = run(journal(tmp_path), [{"x": 1, "what": kind} for kind in kinds])
    assert [t.state for t in trials] == ["failed"] * 4 + ["finished"] * 2
    reasons = [trial.reason for trial in trials]
    assert reasons[0] == "ValueError: too bad"
    assert reasons[1] is not None
    assert reasons[1].startswith("killed by SIGKILL")
    assert reasons[2] == "it ended without results.json: nothing was measured"
    assert reasons[3] == "it never logged val/reward"
    assert (trials[4].objective, trials[5].objective) == (None, 1)
    assert math.isnan(trials[4].history[0][0])


def test_the_objective_is_the_mean_over_seeds(tmp_path: Path) -> None:
    (trial,) = run(journal(tmp_path, seeds=(0, 1, 2)), [{"x": 1}])
    assert trial.objective == pytest.approx(1.1)
    assert [max(values) for values in trial.history] == pytest.approx([1, 1.1, 1.2])
    assert (tmp_path / "run-000" / "seed-2" / "results.json").exists()
    assert said(tmp_path, "run-000/seed-1")[0]["arguments"]["seed"] == "1"


def test_the_other_seeds_of_a_failed_trial_are_not_begun(tmp_path: Path) -> None:
    points = [{"x": 1, "what": "fails"}, {"x": 2}]
    trials = run(journal(tmp_path, seeds=(0, 1)), points, jobs=1)
    assert [trial.state for trial in trials] == ["failed", "finished"]
    assert not (tmp_path / "run-000" / "seed-1").exists()


def test_variables_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "cuda_devices", lambda: ["4", "7"])
    run(journal(tmp_path), [{"x": 1, "pause": 0.1}] * 3, jobs=3)
    seen = [said(tmp_path, f"run-00{number}")[0] for number in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in seen] == ["4", "7", "4"]
    assert {one["WANDB_RUN_GROUP"] for one in seen} == {"rates"}
    assert {one["OMP_NUM_THREADS"] for one in seen} == {threads(3)}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads(3) == "5"


def test_a_single_job_and_a_single_device_change_no_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "cuda_devices", lambda: ["0"])
    for folder, jobs in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        run(journal(tmp_path / folder), [{"x": 1}], jobs=jobs)
        assert said(tmp_path / folder)[0]["CUDA_VISIBLE_DEVICES"] is None
    assert said(tmp_path / "one")[0]["OMP_NUM_THREADS"] is None


# -------------------------------------------------------------------- early termination


@pytest.mark.parametrize("kind", ["endless", "deaf"])
def test_what_is_behind_is_stopped(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_GRACE", 0.3)
    points: list[dict[str, Any]] = [{"x": 2}, {"x": 3}, {"x": -9, "what": kind}]
    started = time.monotonic()
    trials = run(journal(tmp_path), points, jobs=1, early=Hyperband(min_iter=3, eta=3))
    assert [t.state for t in trials] == ["finished", "finished", "stopped"]
    assert trials[2].objective == -9
    assert time.monotonic() - started < 10
    assert not locked(tmp_path / "run-002")


def test_the_seeds_of_a_stopped_trial_stop_with_it(tmp_path: Path) -> None:
    points: list[dict[str, Any]] = [{"x": 2}, {"x": 3}, {"x": -9, "what": "endless"}]
    record = journal(tmp_path, seeds=(0, 1, 2))
    trials = run(record, points, jobs=2, early=Hyperband(min_iter=3, eta=3))
    assert trials[2].state == "stopped"
    assert not (tmp_path / "run-002" / "seed-2").exists()
    assert not locked(tmp_path / "run-002" / "seed-1")


# -------------------------------------------------------------------- interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_ends_its_runs_and_goes_on(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_GRACE", 0.3)
    kinds = ["", "endless", "deaf", ""]
    points = [{"x": 1, "what": kind} for kind in kinds]
    before = signal.getsignal(signal.SIGTERM)

    def act(trials: Sequence[Trial]) -> None:
        if [len(trial.history[0]) for trial in trials] == [3, 3, 3]:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        run(journal(tmp_path), points, watch=Watch(act))
    assert signal.getsignal(signal.SIGTERM) == before
    assert not any(locked(tmp_path / f"run-00{n}") for n in range(3))
    record = Journal.load(tmp_path / "sweep.json")
    assert [trial.state for trial in record.trials] == ["finished", "running", "running"]
    written = (tmp_path / "run-000" / "times.json").read_text()
    (tmp_path / "run-001" / "checkpoints").mkdir()
    (tmp_path / "run-001" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "run-002" / "rest").touch()
    for trial in record.trials:
        trial.parameters["what"] = ""
    trials = run(record, points)
    assert [trial.state for trial in trials] == ["finished"] * 4
    assert (tmp_path / "run-000" / "times.json").read_text() == written, "it ran again"
    assert [one["arguments"].get("ckpt_path") for one in said(tmp_path, "run-001")] == [
        None,
        "last",
    ]
    assert said(tmp_path, "run-002")[1]["arguments"].get("ckpt_path") is None
    assert not (tmp_path / "run-002" / "rest").exists(), "what was left of it is gone"


def killed_sweep(folder: Path, *kinds: str) -> Journal:
    """A journal as SIGKILL leaves it, with trials that it knows as running."""
    record = journal(folder, count=len(kinds))
    record.trials = [Trial(n, {"x": 1, "what": k}, history=[[]]) for n, k in enumerate(kinds)]
    return record


def orphan(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    arguments = ["--x=7", "--seed=0", f"--run_dir={folder}", *options]
    return subprocess.Popen(
        [sys.executable, "-S", str(TRAINEE), *arguments], stdout=subprocess.DEVNULL
    )


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_run_that_outlived_its_sweep_is_waited_for(tmp_path: Path) -> None:
    process = orphan(tmp_path / "run-000", "--pause=0.3")
    until(lambda: locked(tmp_path / "run-000"))
    (trial,) = run(killed_sweep(tmp_path, ""), [])
    assert process.wait() == 0
    assert (trial.state, trial.objective) == ("finished", 7), "x is 7 in the orphan alone"
    assert not (tmp_path / "run-000.log").exists(), "a second one was started"


def test_a_run_that_ended_after_its_sweep_counts(tmp_path: Path) -> None:
    assert orphan(tmp_path / "run-000").wait() == 0
    (trial,) = run(killed_sweep(tmp_path, ""), [])
    assert (trial.state, trial.objective) == ("finished", 7)


def test_an_orphan_that_comes_to_nothing_is_run_again(tmp_path: Path) -> None:
    process = orphan(tmp_path / "run-000", "--what=endless")
    until(lambda: (tmp_path / "run-000" / "metrics.csv").exists())
    watch = Watch(lambda trials: process.kill())
    (trial,) = run(killed_sweep(tmp_path, ""), [], watch=watch)
    process.wait()
    assert (trial.state, trial.objective) == ("finished", 1)


def test_an_orphan_that_had_not_taken_its_directory_yet(tmp_path: Path) -> None:
    """Our run finds it taken and ends with an error; the orphan's result is the one."""
    record = killed_sweep(tmp_path, "")
    record.trials[0].parameters["late"] = 1.0
    processes: list[subprocess.Popen[bytes]] = []

    def begin(trials: Sequence[Trial]) -> None:
        if not processes:
            processes.append(orphan(tmp_path / "run-000", "--pause=0.5"))

    (trial,) = run(record, [], watch=Watch(begin))
    assert processes[0].wait() == 0
    assert "another process trains here" in (tmp_path / "run-000.log").read_text()
    assert (trial.state, trial.objective) == ("finished", 7)


def test_failed_trials_are_tried_again(tmp_path: Path) -> None:
    record = killed_sweep(tmp_path, "", "")
    record.trials[0].state, record.trials[0].reason = "failed", "too bad"
    record.trials[1].state, record.trials[1].objective = "stopped", 0.5
    trials = run(record, [])
    assert [(t.state, t.reason) for t in trials] == [("finished", None), ("stopped", None)]
    assert not (tmp_path / "run-001.log").exists()


def test_seeds_that_are_done_are_not_repeated(tmp_path: Path) -> None:
    record = journal(tmp_path, seeds=(0, 1), count=1)
    record.trials = [Trial(0, {"x": 1}, history=[[4.0], []], done=[0])]
    (trial,) = run(record, [])
    assert trial.objective == pytest.approx((4 + 1.1) / 2)
    assert not (tmp_path / "run-000" / "seed-0.log").exists()


# -------------------------------------------------------------------- parts


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    with pytest.raises(UsageError, match="no sweep to go on with"):
        Journal.load(path)
    for text in ("{", "[]", "{}", '{"trials": [{}]}'):
        path.write_text(text)
        with pytest.raises(UsageError, match="damaged"):
            Journal.load(path)


def test_what_a_run_has_logged(tmp_path: Path) -> None:
    assert logged(tmp_path, "val/loss") is None
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,train/loss\r\n1,3.0\r\n")
    assert logged(tmp_path, "val/loss") is None
    path.write_bytes(b"step,train/loss,val/loss\r\n1,3.0,\r\n1,,2.5\r\n2,,nan\r\n3,,0.")
    values = logged(tmp_path, "val/loss")
    assert values is not None
    assert values[0] == 2.5
    assert math.isnan(values[1])
    assert len(values) == 2, "the last line is not whole yet"


def test_the_best_value_goes_by_the_goal() -> None:
    values = [1.0, math.nan, -3.0, math.inf, -math.inf]
    assert best(values, "maximize") == 1
    assert best(values, "minimize") == -3
    assert best([math.nan], "minimize") is None


def test_cuda_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda_devices() == []
    tool = tmp_path / "nvidia-smi"
    listing = "GPU 0: A (UUID: GPU-1)\n  MIG 1g.18gb Device 0: (UUID: MIG-1)\nGPU 1: A (UUID: b)"
    tool.write_text(f"#!/bin/sh\n/bin/echo '{listing}'\n")
    tool.chmod(0o755)
    assert cuda_devices() == ["0", "1"]
    tool.write_text("#!/bin/sh\n/bin/echo no driver; exit 9\n")
    assert cuda_devices() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert cuda_devices() == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cuda_devices() == []
