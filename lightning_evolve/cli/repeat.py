"""repeat: the same run for several seeds, and what they say together."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from lightning_evolve.cli.arguments import check_seeds, config_files, expand, take
from lightning_evolve.cli.config_files import check_config
from lightning_evolve.cli.run_directory import RUNS
from lightning_evolve.errors import UsageError
from lightning_evolve.files import write_json

_COLUMNS = ("accuracy", "macro_f1", "loss", "steps_to_target")


def run(command: str, arguments: list[str]) -> int:
    """Runs ``fit`` once a seed, then prints and writes the summary.

    Args:
        command: ``repeat``.
        arguments: of the command; what is not its own goes to ``fit``.

    Returns:
        Exit code: 0, or that of the first run that failed.

    Raises:
        UsageError: for a mistake of the user.
    """
    count, rest = take(expand(arguments), "--seeds")
    parent, rest = take(rest, "--run_dir")
    if count is not None and not (count.isdecimal() and int(count) > 0):
        raise UsageError(f"--seeds is {count}; give how many seeds to run, at least 1")
    for option in ("--seed_everything", "--ckpt_path"):
        if take(rest, option)[0] is not None:
            name = "--seed" if option == "--seed_everything" else option
            raise UsageError(f"{command} chooses {name} for each run; leave it out")
    check_seeds(rest)
    files = config_files(rest)
    if not files:
        raise UsageError(f"{command} needs a run to repeat; give --config FILE")
    for name in files:
        check_config(name)
    directory = Path(parent) if parent else RUNS / f"{Path(files[-1]).stem}-seeds"
    _check_options(directory, rest, files)
    results = {}
    for seed in range(int(count or 5)):
        path = directory / f"seed-{seed}"
        if not (path / "results.json").exists():
            code = _fit(seed, path, rest)
            if code:
                return code
        if not (path / "results.json").exists():
            raise UsageError(f"{path} has no results.json: this model gives no table to sum up")
        results[seed] = _read(path / "results.json")
    summary = summarise(results)
    write_json(directory / "summary.json", summary)
    _print(summary)
    print(f"in {directory / 'summary.json'}")
    return 0


def _check_options(directory: Path, arguments: list[str], files: list[str]) -> None:
    """Keeps the options of the first call, and refuses to mix seeds of other ones with them."""
    own = [a.removeprefix("--config=") for a in arguments if a != "--config"]
    options = {
        "arguments": [argument for argument in own if argument not in files],
        "configs": [Path(name).read_text(encoding="utf-8") for name in files],
    }
    kept = directory / "options.json"
    if not kept.exists():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_json(kept, options)
        except OSError as error:
            raise UsageError(
                f"cannot write to {directory} ({error.strerror}); choose another --run_dir"
            ) from error
    elif _read(kept) != options:
        raise UsageError(
            f"{directory} has seeds that were run under other options, which stand in "
            f"{kept.name}; give those, or another --run_dir"
        )


def _read(file: Path) -> dict[str, Any]:
    """What a file of ours holds."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UsageError(f"{file} is damaged; remove it, or choose another --run_dir")
    return content


def summarise(results: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Takes means and 95% intervals over seeds.

    Args:
        results: by seed, the content of ``results.json``.

    Returns:
        ``rows`` as in ``results.json``, over seeds; ``steps_ratio``, how many times the steps of
        ours each rival needs to the target; ``accuracy_gain``, ours minus theirs. Ratios and
        gains are taken within a seed, where all methods see the same tasks, and given by seed.
        What a method never reached in some seed has no mean.
    """
    from lightning_evolve.evaluation import interval

    by_seed = [{row["method"]: row for row in r["rows"]} for r in results.values()]
    methods = [m for m in by_seed[0] if all(m in rows for rows in by_seed)]

    def values(method: str, column: str) -> list[float | None]:
        return [(rows[method].get(column) or {}).get("mean") for rows in by_seed]

    def over_seeds(numbers: list[float | None]) -> dict[str, Any]:
        known = [n for n in numbers if n is not None]
        if len(known) < len(numbers):
            return {"mean": None, "low": None, "high": None, "by_seed": numbers}
        return {**interval(known), "by_seed": numbers}

    def against(method: str, column: str, combine: Any) -> dict[str, Any]:
        pairs = zip(values(method, column), values("evolved", column), strict=True)
        return over_seeds(
            [None if None in (theirs, ours) else combine(theirs, ours) for theirs, ours in pairs]
        )

    rivals = [m for m in methods if m != "evolved"] if "evolved" in methods else []
    first = next(iter(results.values()))
    return {
        "rows": [
            {"method": m, **{column: over_seeds(values(m, column)) for column in _COLUMNS}}
            for m in methods
        ],
        "steps_ratio": {
            m: against(m, "steps_to_target", lambda theirs, ours: theirs / ours if ours else None)
            for m in rivals
            if m != "floor"
        },
        "accuracy_gain": {
            m: against(m, "accuracy", lambda theirs, ours: ours - theirs) for m in rivals
        },
        "seeds": list(results),
        "tasks": first.get("tasks"),
        "rows_tested": first.get("rows_tested"),
        "steps": first.get("steps"),
        "config": first.get("config"),
    }


def _fit(seed: int, path: Path, arguments: list[str]) -> int:
    command = [sys.executable, "-m", "lightning_evolve", "fit", *arguments]
    command += [f"--seed={seed}", f"--run_dir={path}"]
    if path.exists():
        command.append("--ckpt_path=last")
    print(f"seed {seed}: {shlex.join(['lightning-evolve', *command[3:]])}", flush=True)
    # W&B shows the seeds together, unless the user groups them otherwise.
    environment = {"WANDB_RUN_GROUP": path.parent.name, **os.environ}
    got = subprocess.run(command, check=False, env=environment)  # noqa: S603 - our own command
    return got.returncode


def _print(summary: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lightning_evolve.reports.table import METHODS, print_results

    console = Console()
    print_results(summary, console, over=f"{len(summary['seeds'])} seeds")
    table = Table(title="Beside ours, within each seed", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("method", "times our steps", "our gain in accuracy"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method, gain in summary["accuracy_gain"].items():
        ratio = summary["steps_ratio"].get(method)
        table.add_row(METHODS.get(method, method), _range(ratio, ".2f"), _range(gain, "+.3f"))
    if table.row_count:
        console.print(table)


def _range(value: dict[str, Any] | None, form: str) -> str:
    if value is None or value["mean"] is None:
        return "-"
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"
