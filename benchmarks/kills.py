"""Kills evolve at random moments, resumes it each time, and looks at what it has come to.

    nice -n 10 python benchmarks/kills.py --kills 200

Runs are begun until there have been so many kills; each is resumed until it is done, and then
compared with one that nobody has killed on the same data: a plan with new classes, a watched folder
and corrections of a server. In each process all rows that a model is grown from are checked to be
neither held out nor held back.

The processes are forked from one that has imported everything, so that the kills land in the work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml

import lightning_evolve.cli.evolution_parser
import lightning_evolve.cli.evolve
import lightning_evolve.reports.evolution  # noqa: F401 - imported here, once
from lightning_evolve.cli import main as lightning_evolve_main
from lightning_evolve.data.topics import topics
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.feedback import FeedbackStore
from lightning_evolve.evolution.pool import Pool
from lightning_evolve.evolution.state import SERVICE, State

_EARLY, _ALL = 6, 8  # classes
_RECORDS = "id, key, source, text, label, weight, part, status, generation"
_GENERATIONS = "number, parent, trigger, verdict, reasons, model"


def data(folder: Path) -> Path:
    """Writes what all runs are made of, and returns their configuration."""
    rows = topics()
    names = sorted({*rows.labels})[: _ALL + 1]
    pairs = [(t, label) for t, label in zip(rows.texts or [], rows.labels, strict=True)]
    stream = [(t, label) for t, label in pairs if label in names[:_ALL]]
    extra = [
        (t, names[int(n % 5 == 0)]) for n, (t, label) in enumerate(pairs) if label == names[-1]
    ]
    (folder / "inbox").mkdir()
    write(folder / "stream.jsonl", stream)
    write(folder / "inbox" / "some.jsonl", extra[:20])
    write(folder / "inbox" / "more.jsonl", [*extra[15:40], (" ", "no text")])
    write(folder / "corrections.jsonl", extra[40:])
    config = {
        "sources": [
            {
                "class_path": "Planned",
                "init_args": {
                    "source": str(folder / "stream.jsonl"),
                    "phases": [
                        {"generations": 1, "rows": 120, "classes": names[:_EARLY]},
                        {"generations": 6, "rows": 40, "classes": names[:_ALL]},
                    ],
                },
            },
            {
                "class_path": "WatchedFolder",
                "init_args": {"path": str(folder / "inbox"), "settle_seconds": 0},
            },
        ],
        "pretrained": {
            "encoder": {"class_path": "LatentWords", "init_args": {"size": 64}},
            "learner": {"class_path": "Head", "init_args": {"hidden_size": 0}},
        },
        "training": {"alpha": 0.1, "steps": 20, "first_steps": 60},
        "optimisation": {
            "pairs": 1,
            "proposer": {
                "class_path": "ThompsonSampling",
                "init_args": {"space": {"alpha": [0.1, 0.2]}},
            },
        },
        "processing": {"tune": 0.2, "gate": 0.3},
        "gate": {"fewest": 5, "tolerance": 0.2},
        "trigger": {"class_path": "Amount", "init_args": {"records": 20}},
        "monitor": {"window": 40},
        "beside": ["always"],
        "keep": 2,
    }
    (folder / "kills.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "kills.yaml"


def write(path: Path, pairs: list[tuple[str, str]]) -> None:
    """Writes texts and labels."""
    lines = [json.dumps({"text": text, "label": label}) for text, label in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def begin(run: Path, config: Path) -> None:
    """What a server has left before the run begins."""
    run.mkdir()
    store = FeedbackStore(run / SERVICE)
    store.import_file(config.with_name("corrections.jsonl"))
    store.close()


def start(run: Path, config: Path) -> int:
    """Evolves in a process of its own."""
    process = os.fork()
    if process == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        code = 1
        try:
            Pool.examples = checked  # type: ignore[method-assign]
            code = lightning_evolve_main(["evolve", f"--config={config}", f"--run_dir={run}"])
        finally:
            os._exit(code)
    return process


_examples = Pool.examples


def checked(self: Pool, mask: Any, classes: Any) -> Any:
    """Rows to learn from, none of which is held out or held back."""
    assert set(self.part[mask].tolist()) <= {"train"}
    assert self.labelled[mask].all()
    return _examples(self, mask, classes)


def finished(process: int, seconds: float) -> int | None:
    """Exit code of a process that ends within some seconds, None where it does not."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.001)


def outcome(run: Path) -> dict[str, Any]:
    """All of a run that does not depend on the clock."""
    with State(run) as state:
        journal = state.journal
        champion = journal.champion()
        assert champion is not None
        found = {
            "champion": champion.model,
            "records": [tuple(r) for r in journal.execute(f"SELECT {_RECORDS} FROM records")],
            "generations": [
                tuple(r) for r in journal.execute(f"SELECT {_GENERATIONS} FROM generations")
            ],
            "champions": [(seat["generation"], seat["why"]) for seat in journal.champions()],
            "alarms": [alarm["message"] for alarm in journal.alarms()],
            "quarantine": [
                tuple(r) for r in journal.execute("SELECT source, place, reason FROM quarantine")
            ],
            **{name: journal.state(name) for name in ("outer", "proposer", "beside:always")},
        }
        scores = {generation.scores for generation in journal.generations()}
    found["artifacts"] = {p.name for p in (run / "artifacts").glob("??/*")} - scores
    return found


def check(run: Path, whole: dict[str, Any]) -> None:
    """Compares a run that was killed with one that was not."""
    found = outcome(run)
    for name, value in whole.items():
        assert found[name] == value, f"{run}: {name} differs"
    each_once((record[0], record[1], record[6]) for record in found["records"])


def each_once(records: Iterable[tuple[str, str, str | None]]) -> None:
    """Fails where a record is there twice or a text in two parts; takes id, key and part."""
    ids, parts = Counter[str](), dict[str, set[str]]()
    for identity, key, part in records:
        ids[identity] += 1
        if part:
            parts.setdefault(key, set()).add(part)
    assert max(ids.values()) == 1, "each record once"
    assert all(len(names) == 1 for names in parts.values()), "each text in one part"


def kill(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kills so many times.

    Args:
        folder: an empty one.
        kills: how often.
        seed: of the moments.

    Returns:
        Figures.
    """
    torch.set_num_threads(1)  # threads do not survive a fork
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    moments, config = random.Random(seed), data(folder)
    begin(folder / "whole", config)
    began = time.monotonic()
    assert finished(start(folder / "whole", config), 600) == 0
    seconds = time.monotonic() - began
    whole = outcome(folder / "whole")
    killed, runs, within, progress = 0, 0, 0, Counter[int]()
    while killed < kills:
        run = folder / f"run-{runs}"
        begin(run, config)
        while True:
            process = start(run, config)
            patience = 600.0 if killed >= kills else moments.uniform(0, seconds / 6)
            code = finished(process, patience)
            if code is not None:
                assert code == 0, f"{run}: exit code {code}"
                break
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            killed += 1
            if (run / "journal.sqlite").exists():
                generation, busy = progressed(run)
                progress[generation] += 1
                within += busy
        check(run, whole)
        runs += 1
    return {
        "kills": killed,
        "runs": runs,
        "kills by generations begun": dict(sorted(progress.items())),
        "kills within a generation": within,
        "records": len(whole["records"]),
        "generations": [g[3] for g in whole["generations"]],
        "alarms": len(whole["alarms"]),
        "seconds uninterrupted": round(seconds, 2),
    }


def progressed(run: Path) -> tuple[int, bool]:
    """Generations that were begun, and whether the last of them is unfinished."""
    try:
        with State(run) as state:
            generations = state.journal.generations()
    except UsageError:  # the journal itself was being made
        return 0, False
    return len(generations), bool(generations) and generations[-1].finished is None


def main() -> None:
    """Prints the figures; fails where something was lost or done twice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, value in kill(Path(folder), args.kills, args.seed).items():
            print(f"{name}: {value}")
    print("each record once, nothing held out trained on, each champion the uninterrupted run's")


if __name__ == "__main__":
    main()
