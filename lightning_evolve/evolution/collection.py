"""Collection: from folders, datasets, plans and corrections to records, each ingested once.

A source is read in chunks, and the records of a chunk, its bad rows and how far the source has
been read are one transaction: a kill loses nothing and repeats nothing. What is read again all the
same (a file that has grown, the same text from two sources) is the same record by its content.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_evolve.data.cleaning import clean
from lightning_evolve.data.rows import Rows, concatenate
from lightning_evolve.data.splits import SPLITS
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution import reading
from lightning_evolve.evolution.feedback import FeedbackStore
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.records import Record
from lightning_evolve.evolution.redaction import redact as redact_text

CHUNK = 500  # rows of a transaction
DAY = 86_400.0  # seconds between the batches of a plan


class Bad(NamedTuple):
    """A row that is no record.

    Args:
        place: file and line, or split and row.
        reason: what is wrong with it.
    """

    place: str
    reason: str


class Read(NamedTuple):
    """A chunk of a source.

    Args:
        records: in their order.
        bad: rows that are none.
        position: how far the source has been read with this chunk, as JSON knows it.
        batch: number of the planned batch that the chunk is, from 0; None without a plan.
    """

    records: list[Record]
    bad: list[Bad]
    position: Any
    batch: int | None = None


class Source(ABC):
    """Something that records come from.

    Subclasses set ``name``, which tells the source from all others and does not change.
    """

    name: str
    renews = False
    """Whether saying again what is there already is news; see :meth:`Journal.ingest`."""

    @abstractmethod
    def read(self, position: Any) -> Iterator[Read]:
        """Reads on.

        Args:
            position: of the last chunk that was committed, None at the beginning.

        Yields:
            The chunks that follow, in an order that is a function of what is there.

        Raises:
            UsageError: the source as a whole cannot be read.
        """


class Collected(NamedTuple):
    """What a collection brought.

    Args:
        added: records that are new, by source.
        repeated: records that were there already, by source.
        quarantined: rows that are no records and were not known as such, by source.
        redactions: what was redacted in new records, by kind.
    """

    added: Counter[str]
    repeated: Counter[str]
    quarantined: Counter[str]
    redactions: Counter[str]


def collect(
    journal: Journal, sources: Sequence[Source], *, redact: bool = True, batches: int | None = None
) -> Collected:
    """Reads all sources on and writes what they give into the journal, a chunk a transaction.

    The counts of all collections are the journal's state ``"redactions"``.

    Args:
        journal: where the records go.
        sources: in the order in which they are read.
        redact: whether e-mail addresses, phone and card numbers leave the texts.
        batches: how many planned batches there are to be in the journal afterwards, all by
            default; asked again after a kill, those that are there are not taken anew.

    Raises:
        UsageError: two sources have one name, a source as a whole cannot be read, or the journal
            cannot be written.
    """
    names = Counter(source.name for source in sources)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UsageError(f"two sources are called {twice[0]!r}: name each once")
    found = Collected(Counter(), Counter(), Counter(), Counter())
    for source in sources:
        for chunk in source.read(journal.position(source.name)):
            if chunk.batch is not None and batches is not None and chunk.batch >= batches:
                break
            counts = Collected(Counter(), Counter(), Counter(), Counter())
            with journal.writing():
                for record in chunk.records:
                    text, redacted = redact_text(record.text) if redact else (record.text, None)
                    if journal.ingest([replace(record, text=text)], renew=source.renews):
                        counts.added[source.name] += 1
                        counts.redactions.update(redacted or {})
                    else:
                        counts.repeated[source.name] += 1
                for place, reason in chunk.bad:
                    counts.quarantined[source.name] += journal.quarantine(
                        source.name, place, reason
                    )
                if counts.redactions:
                    total = Counter(journal.state("redactions") or {}) + counts.redactions
                    journal.set_state("redactions", dict(total))
                journal.set_position(source.name, chunk.position)
            for sums, more in zip(found, counts, strict=True):
                sums.update(more)
    return found


class WatchedFolder(Source):
    """A folder that files are put into: csv, tsv, jsonl (all also as ``.gz``) and parquet.

    Files are read by name, rows in their order; subfolders and other files are passed over. A file
    is complete when neither its name begins with a dot or an underscore nor it has changed for
    ``settle_seconds``; whoever cannot promise that writes it under such a name and renames it. A
    file that has changed since it was read is read again: the rows that were there are the same
    records. A file that cannot be read at all is quarantined as a whole and tried again when it
    changes.

    Args:
        path: the folder.
        text_column: where the text is; ``text`` or another usual name by default.
        label_column: where the name of the class is; ``label`` or another usual name by default,
            and without one the texts have no labels.
        time_column: where the time is, in seconds since 1970 or as ISO 8601 has it; ``time`` by
            default, and without one the file's time is that of its rows.
        trust: weight of the records, above 0.
        settle_seconds: how long a file has to be left alone.

    Raises:
        UsageError: an argument makes no sense.
    """

    def __init__(
        self,
        path: str,
        *,
        text_column: str | None = None,
        label_column: str | None = None,
        time_column: str | None = None,
        trust: float = 1.0,
        settle_seconds: float = 2.0,
    ) -> None:
        if not trust > 0:
            raise UsageError(f"trust is {trust}: give more than 0, an ordinary source has 1")
        if not settle_seconds >= 0:
            raise UsageError(f"settle_seconds is {settle_seconds}: give 0 or more")
        self.name = f"folder:{path}"
        self.path = Path(path).expanduser()
        self.columns = (text_column, label_column, time_column)
        self.trust = trust
        self.settle_seconds = settle_seconds

    def read(self, position: Any) -> Iterator[Read]:
        """Reads the files that are complete and have changed, on from the last row.

        The position has for each file what tells that it has changed, its digest, and how many
        rows have been read, -1 for all. Files that are gone are forgotten.
        """
        known: dict[str, list[Any]] = dict(position or {})
        before = dict(known)
        records: list[Record] = []
        bad: list[Bad] = []
        files = self.complete()
        known = {name: known[name] for name in known if (self.path / name).exists()}
        for path in files:
            try:
                stamp = _stamp(path)
                if path.name in known and known[path.name][0] == stamp and known[path.name][2] < 0:
                    continue
                digest = _digest(path)
            except FileNotFoundError:
                continue  # taken away since it was listed
            except OSError as error:
                stamp, digest = [], ""  # permissions may change without the file
                bad.append(Bad(path.name, f"it cannot be read ({error.strerror})"))
                known[path.name] = [stamp, digest, -1]
                continue
            same = path.name in known and known[path.name][1] == digest
            done = known[path.name][2] if same else 0
            if done >= 0:
                for number, item in enumerate(self._items(path, stamp[1] / 1e9), start=1):
                    if number <= done:
                        continue
                    if isinstance(item, Record):
                        records.append(item)
                    else:
                        bad.append(item)
                    if len(records) + len(bad) >= CHUNK:
                        known[path.name] = [stamp, digest, number]
                        yield Read(records, bad, dict(known))
                        records, bad = [], []
            known[path.name] = [stamp, digest, -1]
        if known != before or records or bad:
            yield Read(records, bad, known)

    def complete(self) -> list[Path]:
        """The files that nobody is writing any more, by name.

        Raises:
            UsageError: the folder cannot be read.
        """
        return [path for path in self._files() if self._is_settled(path)]

    def unsettled(self) -> list[Path]:
        """The other files, which may not be complete yet.

        Raises:
            UsageError: the folder cannot be read.
        """
        return [path for path in self._files() if not self._is_settled(path)]

    def _files(self) -> list[Path]:
        try:
            places = sorted(self.path.iterdir())
        except OSError as error:
            raise UsageError(
                f"watched folder {str(self.path)!r} cannot be read ({error.strerror}): make it, or "
                "name another"
            ) from error
        return [
            place
            for place in places
            if place.name.lower().endswith(reading.SUFFIXES)
            and not place.name.startswith((".", "_"))
            and place.is_file()
        ]

    def _is_settled(self, path: Path) -> bool:
        try:
            # The absolute value, because the clock of who wrote it may be ahead.
            age = abs(time.time() - path.stat().st_mtime)
        except OSError:
            return False  # taken away since it was listed
        return age >= self.settle_seconds

    def _items(self, path: Path, written: float) -> Iterator[Record | Bad]:
        columns_of: dict[tuple[str, ...], list[str | None]] = {}
        try:
            for row in reading.rows(path):
                place = f"{path.name}:{row.number}"
                if row.fault:
                    yield Bad(place, row.fault)
                    continue
                names = tuple(row.values)
                if names not in columns_of:
                    columns_of[names] = self._columns(path, names)
                text, label, when = (row.values[n] if n else None for n in columns_of[names])
                when = written if when in (None, "") else when
                yield _item(place, self.name, text, label, when, self.trust)
        except UsageError as error:
            yield Bad(path.name, str(error))

    def _columns(self, path: Path, names: Sequence[str]) -> list[str | None]:
        wanted = zip(("text", "label", "time"), self.columns, strict=True)
        found = [reading.column(names, given or usual) for usual, given in wanted]
        # Each object of jsonl has its own columns; of a table that has none, one line tells all.
        if ".jsonl" not in path.name.lower():
            for argument, given, column in zip(_ARGUMENTS, self.columns, found, strict=True):
                if column is None and (given or argument == "text_column"):
                    raise UsageError(
                        f"{str(path)!r} has no column {given or 'text'!r}: set {argument}"
                    )
        return found


_ARGUMENTS = ("text_column", "label_column", "time_column")


def _item(
    place: str, source: str, text: object, label: object, when: object, trust: float = 1.0
) -> Record | Bad:
    try:
        seconds = reading.time_of(when)
        assert seconds is not None
        return Record(seconds, source, reading.text_of(text), reading.label_of(label), trust)
    except ValueError as error:
        return Bad(place, str(error))


def _stamp(path: Path) -> list[int]:
    """What changes whenever a file does: size, time of its content, time of its entry, inode."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class Dataset(Source):
    """A dataset, read once: train, validation and test in this order, rows in their order.

    Args:
        source: ``"docstrings"``, ``"topics"``, a file, a folder, or else the name of a dataset on
            the Hugging Face hub, of texts.
        subset: configuration of a dataset on the hub.
        text_column: where the text is.
        label_column: where the name of the class is.
        classes: classes to keep, all by default.
        cache_dir: where the docstrings are kept once they have been found.
    """

    def __init__(
        self,
        source: str,
        *,
        subset: str | None = None,
        text_column: str = "text",
        label_column: str = "label",
        classes: list[str] | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.name = f"dataset:{source}" + (f":{subset}" if subset else "")
        self._load = _Loading(source, subset, text_column, label_column, classes, cache_dir)

    def read(self, position: Any) -> Iterator[Read]:
        """Reads the rows on from the last; the position is their number, and whether it is all."""
        done, whole = position or (0, False)
        if whole:
            return
        items = [
            (f"{split}:{number}", text, label)
            for split, part in self._load.splits().items()
            for number, (text, label) in enumerate(_pairs(part), start=1)
        ]
        now = time.time()
        for start in range(done, max(len(items), done + 1), CHUNK):
            chunk = [
                _item(place, self.name, text, label, now)
                for place, text, label in items[start : start + CHUNK]
            ]
            records = [item for item in chunk if isinstance(item, Record)]
            bad = [item for item in chunk if isinstance(item, Bad)]
            end = min(start + CHUNK, len(items))
            yield Read(records, bad, [end, end >= len(items)])


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
        self._load = _Loading(source, subset, text_column, label_column, None, cache_dir)

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
        for number in draw.permutation(len(rows)):
            texts.setdefault(rows.labels[number], []).append(_text(rows, number))
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


class Feedback(Source):
    """Corrections of answers, as far as they are resolved.

    Args:
        store: where they are.
    """

    name = "feedback"
    renews = True

    def __init__(self, store: FeedbackStore) -> None:
        self.store = store

    def read(self, position: Any) -> Iterator[Read]:
        """Gives the texts whose corrections have changed; the position is the last entry's seq."""
        corrections = self.store.corrections(int(position or 0))
        for start in range(0, len(corrections), CHUNK):
            chunk = corrections[start : start + CHUNK]
            records = [
                Record(c.time, f"feedback:{'+'.join(c.sources)}", c.text, c.label, c.weight)
                for c in chunk
                if c.weight > 0
            ]
            yield Read(records, [], chunk[-1].seq)


def import_files(journal: Journal, store: FeedbackStore, folder: Path) -> None:
    """Has the store take the files of corrections that are new or have changed.

    Read again, a file changes nothing, so that a kill in the middle does no harm.

    Args:
        journal: where it is noted which files have been read, and which of their rows are bad.
        store: where the corrections go.
        folder: may be absent; see :meth:`FeedbackStore.import_file` for what is in a file.
    """
    known: dict[str, list[int]] = journal.state("corrections") or {}
    watched = WatchedFolder(str(folder)) if folder.is_dir() else None
    for path in watched.complete() if watched else []:
        stamp = _stamp(path)
        if known.get(path.name) == stamp:
            continue
        try:
            bad = store.import_file(path).bad
        except UsageError as error:
            bad = [(path.name, str(error))]
        known[path.name] = stamp
        with journal.writing():
            for place, reason in bad:
                journal.quarantine("corrections", place, reason)
            journal.set_state("corrections", known)


@dataclass(frozen=True)
class _Loading:
    source: str
    subset: str | None
    text_column: str
    label_column: str
    classes: list[str] | None
    cache_dir: str | None

    def splits(self) -> dict[str, Rows]:
        # They need torch, which what only watches a folder does not.
        from lightning_evolve.data.cache import Cache
        from lightning_evolve.data.sources import load

        splits = load(
            self.source,
            cache=Cache(self.cache_dir),
            subset=self.subset,
            text_column=self.text_column,
            label_column=self.label_column,
            classes=self.classes,
        )
        if any(part.texts is None for part in splits.values()):
            raise UsageError(f"source {self.source!r} has images: name one of texts")
        return {name: splits[name] for name in SPLITS if name in splits}


def _pairs(rows: Rows) -> Iterator[tuple[str, str]]:
    assert rows.texts is not None
    yield from zip(rows.texts, rows.labels, strict=True)


def _text(rows: Rows, number: int) -> str:
    assert rows.texts is not None
    return rows.texts[number]
