"""history and rollback: who was champion when, why, and how to go back."""

from __future__ import annotations

import time
from pathlib import Path

from lightning_evolve.cli.arguments import take
from lightning_evolve.errors import UsageError


def run(command: str, arguments: list[str]) -> int:
    """Prints the lineage of a run, or restores an earlier champion.

    Args:
        command: ``history`` or ``rollback``.
        arguments: the directory of the run, and for ``rollback`` perhaps ``--to N``.

    Returns:
        0.

    Raises:
        UsageError: for a mistake of the user.
    """
    to, rest = take(arguments, "--to") if command == "rollback" else (None, arguments)
    if to is not None and not to.isdecimal():
        raise UsageError(f"--to is {to}; give the number of a generation")
    if options := [argument for argument in rest if argument.startswith("-")]:
        raise UsageError(f"{command} has no option {options[0]}; see lightning-evolve --help")
    if len(rest) != 1:
        raise UsageError(
            f"{command} takes one run, and got {len(rest)}; such as: lightning-evolve {command} "
            "runs/evolution"
        )
    path = Path(rest[0])
    return _history(path) if command == "history" else _rollback(path, to)


def _history(path: Path) -> int:
    from rich.console import Console

    from lightning_evolve.evolution.state import State
    from lightning_evolve.reports.evolution import generation_row

    console = Console()
    with State(path) as state:
        journal = state.journal
        champion = journal.champion()
        for generation in journal.generations():
            row = generation_row(
                generation,
                heading=generation.number == 0,
                champion=champion is not None and generation.number == champion.number,
            )
            console.print(row)
        for generation in journal.generations():
            if generation.model:
                parent = "-" if generation.parent is None else str(generation.parent)
                print(
                    f"generation {generation.number}: parent {parent}, "
                    f"{_time(generation.started)}, {generation.trigger}, model "
                    f"{generation.model[:12]}"
                )
        for seat in journal.champions():
            print(f"{_time(seat['time'])}  champion {seat['generation']}: {seat['why']}")
        for alarm in journal.alarms():
            print(f"{_time(alarm['time'])}  alarm: {alarm['message']}")
        counts = journal.execute(
            "SELECT status, count(*) FROM records GROUP BY status ORDER BY status"
        ).fetchall()
        print("records: " + (", ".join(f"{n} {status}" for status, n in counts) or "none"))
    return 0


def _rollback(path: Path, to: str | None) -> int:
    # Only now: they bring torch along, which --help does not need.
    from lightning_evolve.evolution.model import Model
    from lightning_evolve.evolution.state import State

    if not path.is_dir():
        raise UsageError(f"there is no run {path}; name the directory of a run of evolve")
    State(path).close()  # or else it would be made
    with State(path, write=True) as state:
        journal = state.journal
        champion = journal.champion()
        if champion is None:
            raise UsageError(f"{path} has no champion yet, so there is nothing to go back to")
        number = _earlier(journal.champions(), champion.number) if to is None else int(to)
        generations = journal.generations()
        target = generations[number] if number is not None and number < len(generations) else None
        if target is None or not target.model or target.number == champion.number:
            there = [
                str(g.number)
                for g in generations
                if g.model
                and g.number != champion.number
                and state.artifacts.path(g.model).exists()
            ]
            if to is None:
                raise UsageError(
                    f"champion {champion.number} of {path} has no earlier one to go back to"
                )
            raise UsageError(
                f"generation {to} is none that champion {champion.number} can be "
                f"rolled back to; there {'are' if there else 'is'} {', '.join(there) or 'none'}"
            )
        if generations[-1].finished is None:
            raise UsageError(
                f"generation {generations[-1].number} is in progress: finish it first by "
                f"lightning-evolve evolve --run_dir {path} --generations {len(generations)}"
            )
        model = Model.load(state.artifacts, target.model)  # it is there, and whole
        with journal.writing():
            journal.crown(target.number, f"rolled back from {champion.number}")
            # What was expected of the other champion is not expected of this one.
            journal.execute("DELETE FROM state WHERE name = 'monitor'")
    print(f"champion is generation {target.number} again ({len(model.classes)} classes)")
    return 0


def _earlier(seats: list[dict[str, object]], number: int) -> int | None:
    """The champion before, of whom this one was not itself rolled back from."""
    line = [int(str(seat["generation"])) for seat in seats]
    while line and line[-1] >= number:
        line.pop()
    return line[-1] if line else None


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
