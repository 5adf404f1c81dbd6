"""Feedback: what the service has answered, and what people say that it should have answered.

One SQLite file, which the processes of a server write and the loop reads. What a call has written
when it returns outlives a power cut. Entries have an order of their own, ``seq``; the times that
come with them are kept but decide nothing, for clocks differ and run backwards.

How conflicts are resolved. Each source has one voice for a text, its last word; a voice weighs what
the source is trusted. The label with the greatest sum of weights wins, of several the one that was
given last.
"""

from __future__ import annotations

import difflib
import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution import reading
from lightning_evolve.evolution.database import opened, told, transaction
from lightning_evolve.evolution.records import text_key
from lightning_evolve.evolution.redaction import redact as redact_text

VERSION = 1
_SCHEMA = """
CREATE TABLE predictions (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  key TEXT NOT NULL,                -- digest of the text
  time REAL NOT NULL, text TEXT NOT NULL, label TEXT NOT NULL, confidence REAL NOT NULL,
  probabilities TEXT NOT NULL,      -- by class, as JSON
  generation INTEGER NOT NULL       -- of the model that answered
);
CREATE INDEX predictions_by_key ON predictions (key);
CREATE TABLE feedback (             -- never changed: the last entry of a source counts
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  prediction_id TEXT,               -- NULL where only the text was given
  key TEXT NOT NULL, text TEXT NOT NULL, label TEXT NOT NULL,
  source TEXT NOT NULL, time REAL NOT NULL, trust REAL NOT NULL
);
CREATE INDEX feedback_by_key ON feedback (key);
"""
LONGEST_SOURCE = 100  # characters
_FORGOTTEN = 500  # answers in a transaction

Status = Literal["accepted", "repeated", "replaced"]


class UnknownPredictionError(UsageError):
    """A correction of an answer that was never given."""


class BadFeedbackError(UsageError):
    """A correction that cannot be taken as it is, such as to a class that is not one."""


@dataclass(frozen=True)
class Prediction:
    """An answer of the service.

    Args:
        id: what a correction names it by.
        text: what was asked; what is private in it leaves before it is written.
        label: name of the predicted class.
        confidence: probability of that class.
        probabilities: of each class, by name.
        generation: number of the model that answered.
        time: when, in seconds since 1970.
        seq: its place in the log, from 1; 0 before it is there.
    """

    id: str
    text: str
    label: str
    confidence: float
    probabilities: Mapping[str, float]
    generation: int
    time: float
    seq: int = 0


class Given(NamedTuple):
    """What became of a correction.

    Args:
        status: ``"accepted"``, ``"repeated"`` where it was there already, or ``"replaced"`` where
            it takes the place of another label by the same source.
        seq: its entry.
    """

    status: Status
    seq: int


class Correction(NamedTuple):
    """What the corrections of a text come to.

    Args:
        seq: the last entry about the text.
        text: the text.
        label: the class that it is of.
        weight: sum of the trust in those who say so.
        sources: who they are, by name.
        time: when the last of them said so.
    """

    seq: int
    text: str
    label: str
    weight: float
    sources: tuple[str, ...]
    time: float


class Imported(NamedTuple):
    """What became of a file of corrections.

    Args:
        counts: rows by status.
        bad: place and reason of the rows that are no corrections.
    """

    counts: Counter[Status]
    bad: list[tuple[str, str]]


class FeedbackStore:
    """The log of answers and their corrections.

    One instance serves all threads of a process; each process opens its own.

    Args:
        path: the SQLite file, made where there is none.
        trust: weight of the voice of a source, by name, 0 to ignore it; others have 1.
        classes: the labels that may be given, any by default; may be set anew at any time.
        redact: whether e-mail addresses, phone and card numbers leave the texts.

    Raises:
        UsageError: the file is damaged, cannot be written, or a newer version of this package
            wrote it; or a trust is below 0.
    """

    def __init__(
        self,
        path: Path,
        *,
        trust: Mapping[str, float] | None = None,
        classes: Collection[str] | None = None,
        redact: bool = True,
    ) -> None:
        for source, weight in (trust or {}).items():
            if not 0 <= weight < float("inf"):
                raise UsageError(f"trust of {source!r} is {weight}: give 0 or more")
        self.path = path
        self.trust = dict(trust or {})
        self.classes = classes
        self._redact = redact
        self._lock = threading.Lock()
        self._db = opened(path, _SCHEMA, VERSION, create=True)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, transaction(self._db, self.path):
            yield self._db

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, told(self.path):
            yield self._db

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    # ---------------------------------------------------------------- answers

    def log_predictions(self, predictions: Sequence[Prediction]) -> int:
        """Writes answers, all or none of them; they are durable when it returns.

        Args:
            predictions: those with an id that is there already are passed over.

        Returns:
            How many were written.

        Raises:
            UsageError: the disk is full, or the file cannot be written; none was.
        """
        rows = []
        for p in predictions:
            # Half a surrogate pair cannot be written, and must not cost the others their entry.
            text = self._private(p.text.encode(errors="replace").decode())
            shares = json.dumps({name: round(share, 6) for name, share in p.probabilities.items()})
            rows.append(
                (p.id, text_key(text), p.time, text, p.label, p.confidence, shares, p.generation)
            )
        with self._writing() as db:
            return db.executemany(
                "INSERT OR IGNORE INTO predictions (id, key, time, text, label, confidence,"
                " probabilities, generation) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            ).rowcount

    def predictions(self, after_seq: int = 0, limit: int = 1000) -> list[Prediction]:
        """Answers in the order of the log.

        Args:
            after_seq: seq of the last that is known already.
            limit: most answers to give.
        """
        with self._reading() as db:
            rows = db.execute(
                "SELECT seq, id, text, label, confidence, probabilities, generation, time"
                " FROM predictions WHERE seq > ? ORDER BY seq LIMIT ?",
                (after_seq, limit),
            ).fetchall()
        return [
            Prediction(**{**dict(row), "probabilities": json.loads(row["probabilities"])})
            for row in rows
        ]

    def forget(self, before: float) -> int:
        """Deletes the oldest answers; what was said of them stays, and no more can be.

        A few at a time, so that nobody waits for it.

        Args:
            before: seconds since 1970; an older one that comes after newer ones may stay.

        Returns:
            How many were deleted.

        Raises:
            UsageError: the file cannot be written.
        """
        deleted = 0
        while True:
            with self._writing() as db:
                some = db.execute(
                    "DELETE FROM predictions WHERE time < ? AND seq IN"
                    " (SELECT seq FROM predictions ORDER BY seq LIMIT ?)",
                    (before, _FORGOTTEN),
                ).rowcount
            deleted += some
            if some < _FORGOTTEN:
                return deleted

    # ---------------------------------------------------------------- corrections

    def give(self, prediction_id: str, label: str, source: str, time: float | None = None) -> Given:
        """Writes what an answer should have been; it is durable when it returns.

        The same again changes nothing: what the source has said last of this answer or, where a
        time is given, has said at this time.

        Args:
            prediction_id: of the answer.
            label: name of the class.
            source: who says so.
            time: when, in seconds since 1970, as they have it; now by default.

        Returns:
            What became of it.

        Raises:
            UnknownPredictionError: there is no such answer.
            BadFeedbackError: the label is none of ``classes``, or the source no name.
            UsageError: the label, the source or the time is empty or makes no sense; or the disk
                is full, and nothing was written.
        """
        voice = self._voice(label, source, time)
        with self._writing() as db:
            return self._give(db, prediction_id, None, voice)

    def import_file(self, path: Path) -> Imported:
        """Writes the corrections of a file; again, that changes nothing.

        Args:
            path: csv, tsv, jsonl or parquet with columns ``prediction_id`` or ``text`` (or both),
                ``label``, and perhaps ``source`` (``"file:NAME"`` by default) and ``time``.

        Returns:
            What became of its rows; each 500 of them are a transaction.

        Raises:
            UsageError: the file as a whole cannot be read, or the disk is full.
        """
        if not path.name.lower().endswith(reading.SUFFIXES):
            raise UsageError(f"{str(path)!r} is none of {', '.join(reading.SUFFIXES)}: convert it")
        imported = Imported(Counter(), [])
        rows = reading.rows(path)
        while chunk := list(islice(rows, 500)):
            with self._writing() as db:
                done = [self._import_row(db, path, row) for row in chunk]
            for row, (status, fault) in zip(chunk, done, strict=True):
                if status:
                    imported.counts[status] += 1
                else:
                    imported.bad.append((f"{path.name}:{row.number}", fault))
        return imported

    def _import_row(
        self, db: sqlite3.Connection, path: Path, row: reading.Row
    ) -> tuple[Status | None, str]:
        """What became of a row, or what is wrong with it; in a transaction."""
        values = row.values
        if row.fault:
            return None, row.fault
        try:
            voice = self._voice(
                values.get("label"), values.get("source") or f"file:{path.name}", values.get("time")
            )
            identity = values.get("prediction_id")
            text = None if identity else self._private(reading.text_of(values.get("text")))
            given = self._give(db, str(identity) if identity else None, text, voice, read=True)
        except ValueError as error:  # a UsageError is one; what the disk cannot do is none
            return None, str(error)
        return given.status, ""

    def corrections(self, after_seq: int = 0) -> list[Correction]:
        """What is to be learnt from the entries that are new.

        Args:
            after_seq: seq of the last that is known already.

        Returns:
            One correction for each text that has new entries, with all its entries in it, in the
            order of the last entries.
        """
        with self._reading() as db:
            rows = db.execute(
                "SELECT * FROM feedback WHERE key IN (SELECT key FROM feedback WHERE seq > ?)"
                " ORDER BY seq",
                (after_seq,),
            ).fetchall()
        entries: dict[str, list[sqlite3.Row]] = {}
        for row in rows:
            entries.setdefault(row["key"], []).append(row)
        return sorted(_resolve(of_text) for of_text in entries.values())

    def count(self, table: Literal["predictions", "feedback"]) -> int:
        """How many entries there are."""
        with self._reading() as db:
            # The names of the tables are ours.
            return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608

    def _private(self, text: str) -> str:
        return redact_text(text).text if self._redact else text

    def _voice(self, label: object, source: object, when: object) -> _Voice:
        try:
            name = reading.label_of(label)
        except ValueError as error:
            raise BadFeedbackError(f"{error}: give the name of a class") from None
        if name is None:
            raise BadFeedbackError("the label is empty: give the name of a class")
        if self.classes is not None and name not in self.classes:
            near = difflib.get_close_matches(name, self.classes, n=3, cutoff=0)
            raise BadFeedbackError(
                f"label {name!r} is no class of this service: the nearest are {', '.join(near)}"
            )
        if not isinstance(source, str) or not source.strip() or len(source) > LONGEST_SOURCE:
            raise BadFeedbackError(f"source is {source!r:.120}: give a name of 1 to 100 characters")
        try:
            reading.checked(source, "source")
            if not source.isprintable():
                raise ValueError(f"the source {source!r:.120} has signs that cannot be printed")
            seconds = reading.time_of(when)
        except ValueError as error:
            raise BadFeedbackError(f"{error}: mend it") from None
        return _Voice(name, source, seconds)

    def _give(
        self,
        db: sqlite3.Connection,
        identity: str | None,
        text: str | None,
        voice: _Voice,
        *,
        read: bool = False,
    ) -> Given:
        """Writes an entry on an answer, or else on a text; in a transaction.

        A row of a file that has no time may have been read before: what its source has said of
        the same before, it does not say again.
        """
        if identity is not None:
            answer = db.execute("SELECT text FROM predictions WHERE id = ?", (identity,)).fetchone()
            if answer is None:
                raise UnknownPredictionError(
                    f"prediction id {identity!r:.120} is not known: give the id that came with "
                    "an answer of this service"
                )
            text = answer["text"]
        assert text is not None
        key = text_key(text)
        entries = db.execute(
            "SELECT seq, label, time FROM feedback"
            " WHERE key = ? AND prediction_id IS ? AND source = ? ORDER BY seq DESC",
            (key, identity, voice.source),
        ).fetchall()
        for place, entry in enumerate(entries):
            said = place == 0 or entry["time"] == voice.time or (read and voice.time is None)
            if entry["label"] == voice.label and said:
                return Given("repeated", entry["seq"])
        seq = db.execute(
            "INSERT INTO feedback (prediction_id, key, text, label, source, time, trust)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                identity,
                key,
                text,
                voice.label,
                voice.source,
                time.time() if voice.time is None else voice.time,
                self.trust.get(voice.source, 1.0),
            ),
        ).lastrowid
        assert seq is not None
        return Given("replaced" if entries else "accepted", seq)


class _Voice(NamedTuple):
    label: str
    source: str
    time: float | None


def _resolve(entries: Sequence[sqlite3.Row]) -> Correction:
    """What the entries on a text come to, given in their order."""
    last = {entry["source"]: entry for entry in entries}  # one voice a source
    by_label: dict[str, list[sqlite3.Row]] = {}
    for entry in last.values():
        by_label.setdefault(entry["label"], []).append(entry)
    winner = max(
        by_label.values(),
        key=lambda voices: (sum(v["trust"] for v in voices), max(v["seq"] for v in voices)),
    )
    latest = max(winner, key=lambda voice: int(voice["seq"]))
    return Correction(
        seq=entries[-1]["seq"],
        text=latest["text"],
        label=latest["label"],
        weight=sum(voice["trust"] for voice in winner),
        sources=tuple(sorted(voice["source"] for voice in winner)),
        time=latest["time"],
    )
