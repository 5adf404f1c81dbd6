"""sweep: runs of fit with settings from a sweep file of Weights & Biases, without a server."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_evolve.cli import run_directory
from lightning_evolve.cli.arguments import check_seeds, take
from lightning_evolve.cli.arguments import expand as in_full
from lightning_evolve.cli.sweep_checks import check_experiment, fit_arguments, trial_command
from lightning_evolve.cli.sweep_display import display
from lightning_evolve.cli.training import one_line
from lightning_evolve.errors import UsageError
from lightning_evolve.files import replacing
from lightning_evolve.sweeps import Sweep, Trial, load, search_for
from lightning_evolve.sweeps.journal import Journal
from lightning_evolve.sweeps.runner import Runner, threads

_DEFAULT_COUNT = 20
_FILE, _JOURNAL, _PLOT = "sweep.yaml", "sweep.json", "heat_map.png"


@dataclass(frozen=True)
class _Request:
    """What the user asked for.

    Args:
        file: the sweep file.
        count: of trials; None if not given.
        jobs: runs at a time.
        seeds: a trial; None if not given.
        run_dir: as named.
        resume: whether to go on.
        wandb: mode of the runs.
        options: for ``fit``, in full.
    """

    file: Path
    count: int | None
    jobs: int
    seeds: int | None
    run_dir: Path | None
    resume: bool
    wandb: str
    options: list[str]


def run(command: str, arguments: list[str]) -> int:
    """Runs a sweep, then prints its table, its best run and how to have that again.

    Args:
        command: ``sweep``.
        arguments: of the command; what is not its own goes to ``fit``.

    Returns:
        Exit code: 0, 1 if a run failed, 130 after Ctrl-C.

    Raises:
        UsageError: for a mistake of the user, before any run starts.
    """
    request = _request(command, arguments)
    with warnings.catch_warnings():
        form, warnings.formatwarning = warnings.formatwarning, one_line
        try:
            sweep = load(request.file)
        finally:
            warnings.formatwarning = form
    journal = _existing(request, sweep)
    experiment = check_experiment(sweep, request.options)
    journal = journal or _new(request, sweep, experiment)
    if request.count is not None:
        journal.count = request.count
    lock = run_directory.hold(journal.path.parent)
    try:
        return _run(request, sweep, journal)
    finally:
        if lock:
            lock.release()


def _request(command: str, arguments: list[str]) -> _Request:
    rest = [argument for argument in arguments if argument != "--resume"]
    resume = len(rest) < len(arguments)
    numbers: dict[str, int | None] = {}
    for name in ("--count", "--jobs", "--seeds"):
        value, rest = take(rest, name)
        if value is not None and not (value.isdecimal() and int(value) > 0):
            raise UsageError(f"{name} is {value}; give a number of at least 1")
        numbers[name] = int(value) if value is not None else None
    run_dir, rest = take(rest, "--run_dir")
    if not rest or rest[0].startswith("-"):
        raise UsageError(
            f"{command} needs a file before options of fit; lightning-evolve {command} FILE ..."
        )
    file, *options = rest
    options = _joined(in_full(options))
    wandb, options = take(options, "--wandb.mode")
    if wandb not in (None, "off", "offline", "online"):
        raise UsageError(f"--wandb is {wandb}; give off, offline or online")
    if take(options, "--ckpt_path")[0] is not None:
        raise UsageError(f"{command} chooses --ckpt_path for each run; leave it out")
    if numbers["--seeds"] not in (None, 1) and take(options, "--seed_everything")[0] is not None:
        raise UsageError(f"--seeds {numbers['--seeds']} chooses the seeds; leave out --seed")
    check_seeds(options)
    return _Request(
        Path(file),
        numbers["--count"],
        numbers["--jobs"] or 1,
        numbers["--seeds"],
        Path(run_dir) if run_dir else None,
        resume,
        wandb or "off",
        options,
    )


def _joined(options: list[str]) -> list[str]:
    """Writes ``--name value`` as ``--name=value``, so that options can be compared."""
    joined: list[str] = []
    for word in options:
        if joined and not word.startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


# -------------------------------------------------------------------- checks


def _existing(request: _Request, sweep: Sweep) -> Journal | None:
    """Finds the sweep to go on with, or that nothing is in the way of a new one."""
    name = _name(request)
    if not request.resume:
        path = request.run_dir
        if path and path.is_dir() and any(p.name != ".lock" for p in path.iterdir()):
            raise UsageError(
                f"{path} exists and is not empty; choose another --run_dir, or go on with that "
                "sweep by --resume"
            )
        return None
    path = request.run_dir or run_directory.newest(name)
    if path is None:
        raise UsageError(f"there is no sweep {run_directory.RUNS / name}; leave out --resume")
    journal = Journal.load(path / _JOURNAL)
    changed = None
    if (path / _FILE).read_text(encoding="utf-8") != sweep.text:
        changed = f"{request.file} is not the file that it was begun with, {path / _FILE}"
    elif request.options != journal.options:
        before = shlex.join(journal.options) or "no options"
        changed = f"its runs have {before} for fit, and not {shlex.join(request.options) or 'none'}"
    elif request.seeds not in (None, len(journal.seeds)):
        changed = f"its trials have --seeds {len(journal.seeds)}, and not {request.seeds}"
    if changed:
        raise UsageError(f"cannot resume {path}: {changed}; go on as it was, or start another")
    return journal


def _new(request: _Request, sweep: Sweep, experiment: dict[str, Any]) -> Journal:
    """Makes the directory of a sweep."""
    chosen = experiment.get("seed_everything")
    own = chosen if isinstance(chosen, int) and not isinstance(chosen, bool) else 0
    seeds: list[int | None] = [own]
    if request.seeds is not None and request.seeds > 1:
        seeds = list(range(request.seeds))
    if _sets_seed(sweep):
        if len(seeds) > 1:
            raise UsageError(
                f"--seeds is {request.seeds} and the sweep varies the seed itself; leave out one"
            )
        seeds, own = [None], 0
    count = sweep.run_cap if sweep.method == "grid" else sweep.run_cap or _DEFAULT_COUNT
    made = run_directory.for_fit(
        str(request.run_dir) if request.run_dir else None, _name(request), None
    )
    with replacing(made.path / _FILE) as temporary:
        temporary.write_text(sweep.text, encoding="utf-8")
    return Journal(made.path / _JOURNAL, seeds, request.options, own, count)


def _name(request: _Request) -> str:
    return f"{request.file.stem}-sweep"


def _sets_seed(sweep: Sweep) -> bool:
    return any(name in ("seed", "seed_everything") for name in sweep.parameters)


# -------------------------------------------------------------------- running


def _run(request: _Request, sweep: Sweep, journal: Journal) -> int:
    def command(parameters: dict[str, Any], seed: int | None) -> list[str]:
        start, _ = trial_command(sweep, parameters)
        arguments = _plain(fit_arguments(sweep, parameters, []))
        chosen = [] if seed is None else [f"--seed={seed}"]
        return [*start, *arguments, *request.options, *chosen, f"--wandb={request.wandb}"]

    directory = journal.path.parent
    print(f"sweep directory: {directory}", flush=True)
    varying = [name for name, d in sweep.parameters.items() if d.varies]
    with display(varying, sweep.metric, journal.count) as shown:
        runner = Runner(
            sweep,
            search_for(sweep, journal.draw_seed),
            journal,
            jobs=request.jobs,
            command=command,
            occupied=run_directory.locked,
            display=shown,
            environment={"WANDB_RUN_GROUP": sweep.name, "WANDB_JOB_TYPE": "sweep"},
            share_devices=not _sets_devices(sweep, request),
        )
        try:
            runner.run()
        except KeyboardInterrupt:
            interrupted = True
        else:
            interrupted = False
    if interrupted:
        again = shlex.join(["lightning-evolve", "sweep", *_resuming(request, directory)])
        print(f"lightning-evolve: interrupted; go on by: {again}", file=sys.stderr)
        return 130
    return _report(sweep, journal, request)


def _report(sweep: Sweep, journal: Journal, request: _Request) -> int:
    from rich.console import Console

    from lightning_evolve.reports.sweep_table import ranked, run_name, sweep_table

    varying = [name for name, d in sweep.parameters.items() if d.varies]
    trials = ranked(journal.trials, sweep.metric.goal)
    console = Console()
    console.print(sweep_table(trials, varying, sweep.metric))
    directory = journal.path.parent
    if varying:
        from lightning_evolve.reports.heat_map import plot_heat_map

        parameters, metric = sweep.parameters, sweep.metric
        plot_heat_map(trials, parameters, metric.name, metric.goal, directory / _PLOT)
        print(f"heat map in {directory / _PLOT}")
    print(f"trials in {journal.path}")
    failed = [trial for trial in journal.trials if trial.state == "failed"]
    best = trials[0] if trials else None
    if best is None or best.state != "finished" or best.objective is None:
        print(f"no run has reached a finite {sweep.metric.name}")
    else:
        print(f"\nbest: {run_name(best)}  {sweep.metric.name} {best.objective:.6g}")
        print("\n".join(_reproduce(sweep, journal, best, request)))
    for trial in failed:
        name = run_name(trial)
        print(f"lightning-evolve: {name} failed: {trial.reason}", file=sys.stderr)
    return 1 if failed else 0


def _reproduce(sweep: Sweep, journal: Journal, best: Trial, request: _Request) -> list[str]:
    """Returns the commands that give the best run again, and that tell how sure it is."""
    arguments = _plain(fit_arguments(sweep, best.parameters, journal.options))
    unseeded = [word for word in arguments if not word.startswith("--seed_everything=")]
    seed = journal.seeds[0]
    exact = arguments if seed is None else [*unseeded, f"--seed={seed}"]
    again = shlex.join(["lightning-evolve", "fit", *exact])
    if request.jobs > 1:
        # Sums of floating-point numbers depend on how many threads share them.
        again = f"OMP_NUM_THREADS={threads(request.jobs)} {again}"
    compared = [word for word in unseeded if not word.startswith("--comparison.rivals=")]
    count = str(max(5, len(journal.seeds)))
    repeat = shlex.join(["lightning-evolve", "repeat", "--seeds", count, *compared])
    return [again, "beside tuned rivals, over several seeds:", repeat]


def _resuming(request: _Request, directory: Path) -> list[str]:
    words = [str(request.file), *request.options, "--resume", f"--run_dir={directory}"]
    if request.jobs > 1:
        words.append(f"--jobs={request.jobs}")
    if request.wandb != "off":
        words.append(f"--wandb={request.wandb}")
    return words


def _plain(arguments: list[str]) -> list[str]:
    """Writes arguments in full and leaves out what is about W&B: the sweep's own mode holds."""
    return [word for word in _joined(in_full(arguments)) if not word.startswith("--wandb.")]


def _sets_devices(sweep: Sweep, request: _Request) -> bool:
    words: Sequence[str] = [*sweep.command, *request.options, *(f"--{n}" for n in sweep.parameters)]
    return any(word.partition("=")[0] == "--trainer.devices" for word in words)
