"""A stream with planned drift over a dataset, as a source for experiments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_evolve.data.cleaning import clean
from lightning_evolve.data.rows import concatenate
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.collection.base import Read, Source
from lightning_evolve.evolution.collection.loading import Loading
from lightning_evolve.evolution.records import Record

DAY = 86_400.0  # seconds between the batches of a plan


@dataclass(frozen=True)
class Phase:
    """A while of a plan in which what the labels mean does not change.

    Args:
        generations: how many batches it has.
        rows: rows of a batch, as evenly from the labels as it goes.
        classes: names of the source's classes, or names of labels with the classes of the source
            that each of them stands for: a label that stands for others in the next phase drifts.
    """

    generations: int
    rows: int
    classes: list[str] | dict[str, list[str]]

    @property
    def members(self) -> Mapping[str, Sequence[str]]:
        """Classes of the source by label."""
        if isinstance(self.classes, dict):
            return self.classes
        return {name: [name] for name in self.classes}


class Planned(Source):
    """A stream with planned drift over a dataset, for experiments.

    Each batch is a chunk; no row of the dataset is in two of them. Batch n is on day n after
    1970-01-01. Rows that are empty, repeated or contradictorily labelled are left out first.

    Args:
        source: a dataset of texts, see :class:`Dataset`.
        phases: what comes, one after the other.
        seed: what decides which rows come when; that of the loop if None.
        subset: configuration of a dataset on the hub.
        text_column: where the text is.
        label_column: where the name of the class is.
        cache_dir: where the docstrings are kept once they have been found.

    Raises:
        UsageError: there is no phase, or one makes no sense.
    """

    def __init__(
        self,
        source: str,
        phases: list[Phase],
        *,
        seed: int | None = None,
        subset: str | None = None,
        text_column: str = "text",
        label_column: str = "label",
        cache_dir: str | None = None,
    ) -> None:
        if not phases:
            raise UsageError("phases is empty: give one or more")
        for number, phase in enumerate(phases, start=1):
            if phase.generations < 1 or phase.rows < 1:
                raise UsageError(
                    f"phase {number} has {phase.generations} generations of {phase.rows} rows: "
                    "give 1 or more of both"
                )
            members = [name for names in phase.members.values() for name in names]
            if not members or not all(phase.members.values()):
                raise UsageError(f"phase {number} has a label without classes: name some")
            if twice := [name for name, count in Counter(members).items() if count > 1]:
                raise UsageError(f"phase {number} has class {twice[0]!r} twice: name it once")
        self.name = f"planned:{source}" + (f":{subset}" if subset else "")
        self.phases = phases
        self.seed = seed
        self._load = Loading(source, subset, text_column, label_column, None, cache_dir)

    @property
    def batches(self) -> int:
        """How many batches the plan has."""
        return sum(phase.generations for phase in self.phases)

    def phase(self, batch: int) -> int:
        """Number of the phase, from 0, that a batch belongs to."""
        ends = np.cumsum([phase.generations for phase in self.phases])
        return int(np.searchsorted(ends, batch, side="right"))

    def read(self, position: Any) -> Iterator[Read]:
        """Gives the batches that follow; the position is how many there were."""
        done = int(position or 0)
        if done >= self.batches:
            return
        for number, batch in enumerate(self._plan()[done:], start=done):
            records = [
                Record((number + place / len(batch)) * DAY, self.name, text, label)
                for place, (text, label) in enumerate(batch)
            ]
            yield Read(records, [], number + 1, number)

    def rest(self) -> list[list[tuple[str, str]]]:
        """By phase, the rows of its classes that are in no batch, as text and label: to test on."""
        _, texts = self._drawn()
        return [
            [(t, label) for label, names in phase.members.items() for n in names for t in texts[n]]
            for phase in self.phases
        ]

    def _plan(self) -> list[list[tuple[str, str]]]:
        return self._drawn()[0]

    def _drawn(self) -> tuple[list[list[tuple[str, str]]], dict[str, list[str]]]:
        """All batches, and what is left of the source's classes."""
        rows, _ = clean(concatenate(list(self._load.splits().values())))
        draw = np.random.default_rng([self.seed or 0])
        texts: dict[str, list[str]] = {}
        assert rows.texts is not None, "a source without is refused"
        for number in draw.permutation(len(rows)):
            texts.setdefault(rows.labels[number], []).append(rows.texts[number])
        batches = [
            self._batch(number, phase, texts, draw)
            for number, phase in enumerate(self.phases, start=1)
            for _ in range(phase.generations)
        ]
        return batches, texts

    def _batch(
        self, number: int, phase: Phase, texts: dict[str, list[str]], draw: np.random.Generator
    ) -> list[tuple[str, str]]:
        """Takes rows out of ``texts``, by turns from each label."""
        for name in (name for names in phase.members.values() for name in names):
            if name not in texts:
                there = ", ".join(sorted(texts))[:200]
                raise UsageError(
                    f"phase {number} names class {name!r}, which source {self._load.source!r} does "
                    f"not have: choose from {there}"
                )
        batch: list[tuple[str, str]] = []
        labels = list(phase.members)
        for place in range(phase.rows):
            label = labels[place % len(labels)]
            names = phase.members[label]
            left = np.array([len(texts[name]) for name in names])
            if not left.any():
                raise UsageError(
                    f"phase {number} asks for more rows of label {label!r} than source "
                    f"{self._load.source!r} has left: make generations or rows of the phases "
                    "smaller, or name more classes"
                )
            # Each row that is left is as likely: a label's mixture does not drift unplanned.
            name = names[draw.choice(len(names), p=left / left.sum())]
            batch.append((texts[name].pop(), label))
        return [batch[n] for n in draw.permutation(len(batch))]
