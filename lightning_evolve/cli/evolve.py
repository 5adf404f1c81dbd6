"""evolve: the loop of continuous evolution, in a directory that survives everything."""

from __future__ import annotations

import os
import shlex
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_evolve.cli.arguments import config_files, expand, take
from lightning_evolve.cli.run_directory import CONFIG, RUNS
from lightning_evolve.errors import UsageError

if TYPE_CHECKING:
    from lightning_evolve.evolution.loop import Evolution
    from lightning_evolve.evolution.state import State

_PAUSE = 2.0  # seconds between two looks at the sources
_FLAGS = ("--watch", "--dry-run", "--dry_run", "--print_config")


def run(command: str, arguments: list[str]) -> int:
    """Takes the generations that are due; with ``--watch``, waits for more.

    Args:
        command: ``evolve``.
        arguments: of the command.

    Returns:
        0, or 130 after Ctrl-C.

    Raises:
        UsageError: for a mistake of the user.
    """
    flags = {flag for flag in arguments if flag in _FLAGS}
    rest = expand([argument for argument in arguments if argument not in _FLAGS])
    run_dir, rest = take(rest, "--run_dir")
    generations, rest = take(rest, "--generations")
    if generations is not None and not (generations.isdecimal() and int(generations) > 0):
        raise UsageError(f"--generations is {generations}; give how many, at least 1")
    files = config_files(rest)
    path = Path(run_dir) if run_dir else RUNS / (Path(files[-1]).stem if files else command)
    known = path / CONFIG
    if not files:
        if not known.exists():
            raise UsageError(f"{path} is no run yet; give --config FILE to begin one")
        rest = [f"--config={known}", *rest]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from lightning_evolve.cli.training import quiet

    with quiet():
        from lightning_evolve.cli.evolution_parser import build

        # From here on it takes seconds.
        evolution, text = build(rest, print_config="--print_config" in flags)
        if "--dry-run" in flags or "--dry_run" in flags:
            if known.exists():
                _remember(known, text)
            return _dry_run(evolution, path)
        from lightning_evolve.evolution.state import JOURNAL, State, alone

        if known.exists() and not (path / JOURNAL).exists():
            raise UsageError(f"{path} is a run of fit; give another --run_dir")
        with alone(path), State(path, write=True) as state:
            journal = state.journal
            begun = journal.generations() or journal.execute("SELECT 1 FROM records").fetchone()
            if not begun:
                known.unlink(missing_ok=True)  # of a start that failed: nothing hangs on it
            _remember(known, text)
            print(f"run directory: {path}", flush=True)
            last = None if generations is None else int(generations)
            try:
                _evolve(evolution, state, last, watch="--watch" in flags)
            except KeyboardInterrupt:
                print(
                    "lightning-evolve: interrupted; go on by: lightning-evolve evolve --run_dir "
                    f"{shlex.quote(str(path))}"
                )
                return 130
            _report(state)
            if waiting := evolution.unsettled(state):
                names = ", ".join(path.name for path in waiting[:3]) + ", ..." * (len(waiting) > 3)
                print(
                    f"not read, for they may still be written: {names}; run evolve again in a few "
                    "seconds, or with --watch"
                )
    return 0


def _remember(known: Path, text: str) -> None:
    """Keeps the configuration of a run; a run keeps to its own."""
    from lightning_evolve.files import replacing

    if not known.exists():
        with replacing(known) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    if key := _difference(known.read_text(encoding="utf-8"), text):
        raise UsageError(
            f"{known.parent} was begun with another configuration ({key} differs): leave --config "
            "and options out to go on with it, or give another --run_dir"
        )


def _difference(earlier: str, now: str) -> str | None:
    """The first key that has changed; one that an earlier version did not have has not."""
    import yaml

    def flat(tree: Any, at: str = "") -> dict[str, Any]:
        if not isinstance(tree, dict) or not tree:
            return {at: tree or None}
        return {k: v for n, t in tree.items() for k, v in flat(t, f"{at}.{n}".strip(".")).items()}

    before, after = flat(yaml.safe_load(earlier)), flat(yaml.safe_load(now))

    def same(key: str) -> bool:
        if any(other.startswith(f"{key}.") for other in after):
            return False  # nothing has become something
        return bool(before[key] == after.get(key))

    return next((key for key in before if not same(key)), None)


def _evolve(evolution: Evolution, state: State, last: int | None, *, watch: bool) -> None:
    from rich.console import Console

    from lightning_evolve.reports.evolution import generation_row

    console, heading = Console(), True
    while True:
        for generation in _until(evolution, state, last):
            console.print(generation_row(generation, heading=heading))
            heading = False
        if not watch or _enough(state, last):
            return
        with state.resting():
            time.sleep(_PAUSE)


def _enough(state: State, last: int | None) -> bool:
    done = [g for g in state.journal.generations() if g.finished]
    return last is not None and len(done) >= last


def _until(evolution: Evolution, state: State, last: int | None) -> Iterator[Any]:
    if _enough(state, last):
        return
    for generation in evolution.run(state):
        yield generation
        if _enough(state, last):
            return


def _report(state: State) -> None:
    from rich.console import Console

    from lightning_evolve.files import write_json
    from lightning_evolve.reports.evolution import (
        comparison,
        plot_generations,
        print_comparison,
    )

    console = Console()
    generations = [g for g in state.journal.generations() if g.finished]
    quoted = shlex.quote(str(state.path))
    if not generations:
        print("no generation yet: the trigger waits for more records (see evolve --dry-run)")
        return
    ways = comparison(generations)
    if len(ways) > 1:
        print_comparison(ways, console)
    write_json(
        state.path / "results.json",
        {
            "ways": ways,
            "generations": [
                {"number": g.number, "verdict": g.verdict, **g.summary} for g in generations
            ],
        },
    )
    if ways:
        plot_generations(generations, state.path / "generations.png")
    for kind, count in (state.journal.state("redactions") or {}).items():
        print(f"redacted: {count} {kind}")
    if bad := state.journal.execute("SELECT count(*) FROM quarantine").fetchone()[0]:
        print(f"in quarantine: {bad} rows that are no records")
    print(
        f"in {state.path / 'results.json'}; next: lightning-evolve history {quoted}, or "
        f"lightning-evolve serve {quoted}"
    )


def _dry_run(evolution: Evolution, path: Path) -> int:
    """Says what would happen, on a copy that is thrown away."""
    from lightning_evolve.evolution.artifacts import Artifacts
    from lightning_evolve.evolution.state import CORRECTIONS, JOURNAL, SERVICE, State

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in (JOURNAL, SERVICE):
            if (path / name).exists():
                _backup(path / name, copy / name)
        if (path / CORRECTIONS).is_dir():  # which are only read
            (copy / CORRECTIONS).symlink_to((path / CORRECTIONS).resolve())
        with State(copy, write=True) as state:
            state.artifacts = Artifacts(path / "artifacts")  # which are only read
            for sentence in evolution.forecast(state):
                print(sentence)
    return 0


def _backup(source: Path, target: Path) -> None:
    from lightning_evolve.evolution.database import told

    # SQLite's own copying, as another process may be writing.
    with told(source):
        one, other = sqlite3.connect(source), sqlite3.connect(target)
        try:
            one.backup(other)
        finally:
            one.close()
            other.close()
