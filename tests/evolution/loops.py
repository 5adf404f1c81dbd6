"""Small loops over made-up texts, whose generations take tenths of a second."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lightning_evolve.data.cache import Cache
from lightning_evolve.data.encoders import LatentWords
from lightning_evolve.evolution.collection import Planned, Read, Source
from lightning_evolve.evolution.gate import Gate
from lightning_evolve.evolution.journal import Generation
from lightning_evolve.evolution.loop import Evolution
from lightning_evolve.evolution.optimisation import Optimisation
from lightning_evolve.evolution.pretrained import Pretrained
from lightning_evolve.evolution.processing import Processing
from lightning_evolve.evolution.records import Record
from lightning_evolve.evolution.state import State
from lightning_evolve.evolution.training import Training
from lightning_evolve.evolution.triggers import Amount
from lightning_evolve.learners import Head

Labelled = tuple[str, str | None]
BEFORE = ("sport", "money", "weather", "food")
AFTER = (*BEFORE, "music", "law")
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
_WORDS = (
    {  # twelve words that say each class; all texts have some of all
        label: [f"{_SYLLABLES[5 * n]}{_SYLLABLES[n + 12 * m]}na" for n in range(12)]
        for m, label in enumerate(AFTER[:5])
    }
    | {"law": [f"{_SYLLABLES[5 * n]}{_SYLLABLES[n]}{_SYLLABLES[n + 3]}" for n in range(12)]}
)


def texts(count: int, classes: Sequence[str] = BEFORE, seed: int = 0) -> list[Labelled]:
    """Texts of made-up words, of each class in turn: some words are of the class, most of all."""
    draw = np.random.default_rng(seed)
    every = [word for words in _WORDS.values() for word in words]
    found: list[Labelled] = []
    for number in range(count):
        label = classes[number % len(classes)]
        words = [*draw.choice(_WORDS[label], 5), *draw.choice(every, 5)]
        found.append((" ".join(draw.permutation(words).tolist()), label))
    return found


def poisoned(rows: Sequence[Labelled], share: float, seed: int = 0) -> list[Labelled]:
    """The same texts, a share of them under the label of another class."""
    draw = np.random.default_rng(seed)
    classes = sorted({str(label) for _, label in rows})
    wrong = set(draw.permutation(len(rows))[: round(share * len(rows))].tolist())
    return [
        (text, classes[(classes.index(str(label)) + 1) % len(classes)] if n in wrong else label)
        for n, (text, label) in enumerate(rows)
    ]


class Batches(Planned):
    """A plan of texts with labels; each batch is of one or several sources."""

    def __init__(self, *batches: Sequence[Labelled] | dict[str, Sequence[Labelled]]) -> None:
        self.name, self.seed = "batches", 0
        self.plan = list(batches)

    @property
    def batches(self) -> int:
        return len(self.plan)

    def read(self, position: Any) -> Iterator[Read]:
        done = int(position or 0)
        for number, batch in enumerate(self.plan[done:], start=done):
            parts = batch if isinstance(batch, dict) else {self.name: batch}
            records = [
                Record(1000.0 * number + n, source, text, label)
                for source, rows in parts.items()
                for n, (text, label) in enumerate(rows)
            ]
            yield Read(records, [], number + 1, number)


def evolution(*sources: Source, cache: Path, **given: Any) -> Evolution:
    """A loop of a linear layer on words."""
    made = Evolution(
        **{
            "sources": list(sources),
            "pretrained": Pretrained(LatentWords(72), partial(Head, hidden_size=0)),
            "processing": Processing(tune=0.2, gate=0.3),
            "training": Training(alpha=0.1, steps=30, first_steps=60),
            "optimisation": Optimisation(pairs=0),
            "gate": Gate(fewest=20),
            "trigger": Amount(10),
            **given,
        }
    )
    made.cache = Cache(cache)
    return made


def lived(run: Path, *sources: Source, **given: Any) -> list[Generation]:
    """Takes all generations that are due, in a run of its own or one that goes on."""
    with State(run, write=True) as state:
        list(evolution(*sources, cache=run.parent / "cache", **given).run(state))
        return state.journal.generations()


def contents(run: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that a journal says, apart from times and how long something took."""
    timed = {"time", "started", "finished", "scores"}  # scores have what it cost
    found = {}
    with State(run) as state:
        tables = state.journal.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            cursor = state.journal.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
            names = [column[0] for column in cursor.description]
            found[table] = [
                tuple(_untimed(v) for n, v in zip(names, row, strict=True) if n not in timed)
                for row in cursor.fetchall()
                if "began" not in tuple(row)
            ]
    return found


def _untimed(value: Any) -> Any:
    """Summaries without how long something took."""
    if isinstance(value, str) and value.startswith("{"):
        return json.dumps(_without_seconds(json.loads(value)))
    return value


def _without_seconds(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: _without_seconds(v) for k, v in value.items() if k != "seconds"}
