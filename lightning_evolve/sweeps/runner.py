"""Running a sweep: a process for each trial and seed, several at a time, and the journal of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from lightning_evolve.sweeps.devices import cuda_devices
from lightning_evolve.sweeps.journal import Journal
from lightning_evolve.sweeps.objective import logged, over_seeds
from lightning_evolve.sweeps.search import Search
from lightning_evolve.sweeps.specification import Sweep
from lightning_evolve.sweeps.trials import Trial

_PAUSE = 0.2  # seconds between two looks at the runs
_GRACE = 10.0  # seconds that a run which shall end gets before it is killed


class Display(Protocol):
    """Who is told about the trials while they run."""

    def refresh(self, trials: Sequence[Trial]) -> None:
        """Shows all trials as they are at this moment."""
        ...

    def ended(self, trial: Trial) -> None:
        """Is told of a trial that is over, whatever became of it."""
        ...


@dataclass
class _Run:
    """A trial with one seed, while it trains.

    Args:
        trial: the trial.
        index: place of its seed.
        slot: which of the J slots it takes.
        path: directory of the run.
        log: file with all that it prints.
        process: None for one that an earlier sweep has left behind.
        started: when, in seconds of the monotonic clock.
        deadline: when it is killed, once it was told to end.
        seen: size and time of the metrics that were read last.
    """

    trial: Trial
    index: int
    slot: int
    path: Path
    log: Path
    process: subprocess.Popen[bytes] | None
    started: float = field(default_factory=time.monotonic)
    deadline: float | None = None
    seen: tuple[int, int] | None = None


class Runner:
    """Runs the trials of a sweep.

    A run counts when it has ended with exit code 0 and ``results.json``; its objective is then
    the best that it logged. What fails is recorded, and the sweep goes on.

    Args:
        sweep: what is searched.
        search: proposes trials.
        journal: the trials so far, and where they are recorded; the runs go beside it.
        jobs: how many runs at a time.
        command: of a run without its directory, from parameters and seed.
        occupied: whether some process trains in a directory.
        display: who is told.
        environment: variables for every run, where they are not set already.
        share_devices: whether each slot gets a CUDA device of its own, where there are several.
    """

    def __init__(
        self,
        sweep: Sweep,
        search: Search,
        journal: Journal,
        *,
        jobs: int,
        command: Callable[[dict[str, Any], int | None], list[str]],
        occupied: Callable[[Path], bool],
        display: Display,
        environment: Mapping[str, str],
        share_devices: bool = True,
    ) -> None:
        self._sweep, self._search, self._journal = sweep, search, journal
        self._jobs, self._command, self._occupied = jobs, command, occupied
        self._display, self._environment = display, environment
        devices = cuda_devices() if share_devices and jobs > 1 else []
        self._devices = devices if len(devices) > 1 else []
        self._active: list[_Run] = []
        self._queue: list[tuple[Trial, int]] = []
        self._exhausted = False

    def run(self) -> None:
        """Runs what is missing.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once all runs have ended; they stay in the
                journal as running.
        """
        with _terminable():
            try:
                self._restore()
                while self._fill():
                    time.sleep(_PAUSE)
                    for run in list(self._active):
                        self._follow(run)
                    self._display.refresh(self._journal.trials)
            except BaseException:
                self._end_all()
                raise

    # ---------------------------------------------------------------- starting

    def _restore(self) -> None:
        """Queues what an earlier call has left undone, processes that still train first."""
        for trial in self._journal.trials:
            if trial.state == "running":
                # A run that ended between two entries of the journal.
                for index in self._missing(trial):
                    path = self._path(trial, index)
                    if (path / "results.json").exists() and not self._occupied(path):
                        self._read(trial, index, path)
                        self._settle(trial, index)
            if trial.state == "failed":
                trial.state, trial.reason = "running", None
            if trial.state == "running":
                self._queue += [(trial, index) for index in self._missing(trial)]
        self._queue.sort(key=lambda entry: not self._occupied(self._path(*entry)))

    def _missing(self, trial: Trial) -> list[int]:
        return [i for i in range(len(self._journal.seeds)) if i not in trial.done]

    def _fill(self) -> bool:
        """Starts runs until all slots are taken; returns whether any run is left."""
        while len(self._active) < self._jobs and (entry := self._next()):
            self._start(*entry)
        return bool(self._active)

    def _next(self) -> tuple[Trial, int] | None:
        trials, count = self._journal.trials, self._journal.count
        if not self._queue and not self._exhausted and (count is None or len(trials) < count):
            parameters = self._search.propose(len(trials), trials)
            if parameters is None:
                self._exhausted = True
                return None
            trial = Trial(len(trials), parameters, history=[[] for _ in self._journal.seeds])
            trials.append(trial)
            self._queue = [(trial, index) for index in self._missing(trial)]
        return self._queue.pop(0) if self._queue else None

    def _start(self, trial: Trial, index: int) -> None:
        path = self._path(trial, index)
        log = path.parent / f"{path.name}.log"
        slot = min(set(range(self._jobs)) - {run.slot for run in self._active})
        self._journal.save()
        command = [*self._command(trial.parameters, self._journal.seeds[index])]
        command.append(f"--run_dir={path}")
        if self._occupied(path):
            self._active.append(_Run(trial, index, slot, path, log, None))
            return
        if (path / "checkpoints" / "last.ckpt").exists():
            command.append("--ckpt_path=last")
        else:
            # What is left of a run that came to nothing; fit wants an empty directory.
            shutil.rmtree(path, ignore_errors=True)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._variables(slot),
                # Ctrl-C in the terminal is for the sweep, which then ends its runs in order.
                start_new_session=True,
            )
        self._active.append(_Run(trial, index, slot, path, log, process))

    def _variables(self, slot: int) -> dict[str, str]:
        variables = {**self._environment, **os.environ}
        if self._jobs > 1:
            variables["OMP_NUM_THREADS"] = threads(self._jobs)
        if self._devices:
            variables["CUDA_VISIBLE_DEVICES"] = self._devices[slot % len(self._devices)]
        return variables

    def _path(self, trial: Trial, index: int) -> Path:
        path = self._journal.path.parent / f"run-{trial.number:03d}"
        seeds = self._journal.seeds
        return path / f"seed-{seeds[index]}" if len(seeds) > 1 else path

    # ---------------------------------------------------------------- following

    def _follow(self, run: _Run) -> None:
        new = self._read_new(run)
        if run.process is None:
            if not self._occupied(run.path):
                self._left(run)
            return
        code = run.process.poll()
        if code is not None:
            self._ended(run, code)
        elif run.deadline is None:
            if new and self._behind(run):
                self._stop(run.trial)
        elif time.monotonic() > run.deadline:
            _signal(run.process, signal.SIGKILL)

    def _read_new(self, run: _Run) -> bool:
        """Reads the objective if metrics.csv has changed; returns whether there is more of it."""
        with suppress(FileNotFoundError):
            stat = (run.path / "metrics.csv").stat()
            if run.seen != (stat.st_size, stat.st_mtime_ns):
                run.seen = (stat.st_size, stat.st_mtime_ns)
                before = len(run.trial.history[run.index])
                self._read(run.trial, run.index, run.path)
                return len(run.trial.history[run.index]) > before
        return False

    def _read(self, trial: Trial, index: int, path: Path) -> None:
        trial.history[index] = logged(path, self._sweep.metric.name) or []

    def _behind(self, run: _Run) -> bool:
        """Whether early termination says so."""
        rule = self._sweep.early_terminate
        if rule is None:
            return False
        own = run.trial.history[run.index]
        # A trial is compared by the same seed: its other seeds may not have begun.
        others = [
            trial.history[run.index]
            for trial in self._journal.trials
            if trial is not run.trial and trial.state != "failed"
        ]
        return rule.should_stop(own, others, self._sweep.metric.goal)

    def _stop(self, trial: Trial) -> None:
        trial.state = "stopped"
        self._drop(trial)
        for run in self._active:
            if run.trial is trial and run.process is not None:
                run.deadline = time.monotonic() + _GRACE
                _signal(run.process, signal.SIGTERM)

    def _left(self, run: _Run) -> None:
        """An orphan has ended: takes its result, or goes on in its place."""
        self._active.remove(run)
        run.trial.seconds += time.monotonic() - run.started
        if run.trial.state != "running":
            self._over(run.trial)
        elif (run.path / "results.json").exists():
            self._read(run.trial, run.index, run.path)
            self._settle(run.trial, run.index)
        else:
            self._queue.insert(0, (run.trial, run.index))

    def _ended(self, run: _Run, code: int) -> None:
        assert run.process is not None, "orphans have no exit code"
        trial = run.trial
        self._read(trial, run.index, run.path)
        if trial.state == "running" and code and self._occupied(run.path):
            # An orphan that had not yet taken its directory when we looked; now it has.
            run.process = None
            return
        self._active.remove(run)
        trial.seconds += time.monotonic() - run.started
        if trial.state != "running":
            # The processes that a run starts may outlive the first one.
            _signal(run.process, signal.SIGKILL)
            self._over(trial)
        elif code:
            self._fail(trial, _reason(run.log, code))
        elif not (run.path / "results.json").exists():
            self._fail(trial, "it ended without results.json: nothing was measured")
        else:
            self._settle(trial, run.index)

    def _settle(self, trial: Trial, index: int) -> None:
        """A run has ended well."""
        if not trial.history[index]:
            self._fail(trial, f"it never logged {self._sweep.metric.name}")
            return
        trial.done.append(index)
        if len(trial.done) == len(self._journal.seeds):
            trial.state = "finished"
            self._over(trial)
        else:
            self._journal.save()

    def _fail(self, trial: Trial, reason: str) -> None:
        trial.state, trial.reason = "failed", reason
        self._drop(trial)
        self._over(trial)

    def _drop(self, trial: Trial) -> None:
        """The seeds that have not begun are not worth it."""
        self._queue = [entry for entry in self._queue if entry[0] is not trial]

    def _over(self, trial: Trial) -> None:
        if any(run.trial is trial for run in self._active):
            return
        if trial.state != "failed":
            trial.objective = over_seeds(trial.history, self._sweep.metric.goal)
        self._journal.save()
        self._display.ended(trial)

    def _end_all(self) -> None:
        """Ends all runs that are ours; in the journal they remain running."""
        processes = [run.process for run in self._active if run.process is not None]
        for process in processes:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE
        try:
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            # Also those that a second Ctrl-C does not want to wait for.
            for process in processes:
                _signal(process, signal.SIGKILL)
                process.wait()
            for run in self._active:
                run.trial.seconds += time.monotonic() - run.started
            self._journal.save()


def threads(jobs: int) -> str:
    """Returns ``OMP_NUM_THREADS`` for each of several runs at a time, unless it is set already.

    Args:
        jobs: how many.
    """
    mask = getattr(os, "sched_getaffinity", None)  # the cores that we may use; not on all systems
    cores = len(mask(0)) if mask else os.cpu_count() or 1
    return os.environ.get("OMP_NUM_THREADS", str(max(1, cores // jobs)))


@contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM do what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Signals a process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _reason(log: Path, code: int) -> str:
    """Returns in a line why a run has failed."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; see {log}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
    return last.removeprefix("lightning-evolve: error: ")
