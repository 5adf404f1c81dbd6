"""The journal: everything that the loop knows, in one SQLite file that survives a kill."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.database import opened, transaction
from lightning_evolve.evolution.records import Record, text_key

VERSION = 1
_SCHEMA = """
CREATE TABLE records (              -- what came in, once each
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,          -- digest of text and label
  key TEXT NOT NULL,                -- digest of the text alone
  time REAL NOT NULL, source TEXT NOT NULL, text TEXT NOT NULL, label TEXT, weight REAL NOT NULL,
  part TEXT,                        -- train, tune or gate, once processed
  status TEXT NOT NULL,             -- new, kept, duplicate, unlabelled, refused, superseded, held
  generation INTEGER                -- which generation took it
);
CREATE INDEX records_by_key ON records (key);
CREATE INDEX records_by_status ON records (status, generation);
CREATE TABLE bands (                -- of the MinHash of each text that was kept, to find its like
  band INTEGER NOT NULL, key TEXT NOT NULL, PRIMARY KEY (band, key)
) WITHOUT ROWID;
CREATE TABLE quarantine (           -- rows that are no records, and why
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  source TEXT NOT NULL, place TEXT NOT NULL, reason TEXT NOT NULL, time REAL NOT NULL,
  UNIQUE (source, place, reason)
);
CREATE TABLE positions (source TEXT PRIMARY KEY, position TEXT NOT NULL);
CREATE TABLE generations (
  number INTEGER PRIMARY KEY, parent INTEGER, started REAL NOT NULL, finished REAL,
  trigger TEXT NOT NULL, verdict TEXT, reasons TEXT, model TEXT, scores TEXT, summary TEXT
);
CREATE TABLE stages (               -- results of the finished steps of a generation
  generation INTEGER NOT NULL, name TEXT NOT NULL, result TEXT NOT NULL,
  PRIMARY KEY (generation, name)
);
CREATE TABLE champions (            -- who was in use, the last is
  seq INTEGER PRIMARY KEY AUTOINCREMENT, generation INTEGER NOT NULL, time REAL NOT NULL,
  why TEXT NOT NULL
);
CREATE TABLE alarms (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, generation INTEGER, time REAL NOT NULL,
  message TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Generation(NamedTuple):
    """A generation, finished or in progress.

    Args:
        number: from 0, the founding one.
        parent: number of the champion that it grew from, None for the founding one.
        started: when, in seconds since 1970.
        finished: when, None while it is in progress.
        trigger: why it was started.
        verdict: ``"founded"``, ``"promoted"``, ``"kept"`` or None while in progress.
        reasons: why that is the verdict, one sentence each.
        model: artifact of its model; None where it has none.
        scores: artifact of its evaluation.
        summary: figures for the tables.
    """

    number: int
    parent: int | None
    started: float
    finished: float | None
    trigger: str
    verdict: str | None
    reasons: tuple[str, ...]
    model: str | None
    scores: str | None
    summary: dict[str, Any]


class Journal:
    """Reads and writes the journal; several processes may read while one writes.

    Each ``with journal.writing():`` is one transaction: all of it is there, or nothing.

    Args:
        path: the SQLite file.
        create: whether to make it where there is none.

    Raises:
        UsageError: there is no journal, it is damaged, or a newer version of this package wrote it.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if not create and not path.is_file():
            raise UsageError(
                f"{path.parent} has no {path.name}, so it is no run of evolve: start one by "
                f"lightning-evolve evolve --run_dir {path.parent} --config FILE"
            )
        self.path = path
        self._db = opened(path, _SCHEMA, VERSION, create=create)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction.

        Raises:
            UsageError: the disk is full, or the journal cannot be written.
        """
        with transaction(self._db, self.path):
            yield

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Runs a statement; one that writes belongs inside :meth:`writing`."""
        return self._db.execute(statement, values)

    def execute_many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Runs a statement that writes for each of many values; inside :meth:`writing`."""
        self._db.executemany(statement, values)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    # ---------------------------------------------------------------- records

    def ingest(self, records: Iterable[Record], *, renew: bool = False) -> int:
        """Adds records that are not there yet, as ``new``; inside :meth:`writing`.

        Args:
            records: any; those with the id of one that is there are passed over.
            renew: whether saying again what is there is news, as it is of a correction: a record
                that is not in use is ``new`` again, and one that is takes a greater weight. What
                is held back is new again wherever another source says the same.

        Returns:
            How many were added or renewed.
        """
        again = "status = 'held' AND source != excluded.source"
        if renew:
            again += " OR status NOT IN ('kept', 'held', 'new')"
        statement = (
            "INSERT INTO records (id, key, time, source, text, label, weight, status)"  # noqa: S608
            " VALUES (?, ?, ?, ?, ?, ?, ?, 'new') ON CONFLICT (id) DO UPDATE SET"
            # What was held back has never been learned from; what was superseded has.
            " generation = CASE status WHEN 'held' THEN NULL ELSE generation END,"
            f" status = CASE WHEN {again} THEN 'new' ELSE status END,"
            " source = excluded.source, weight = excluded.weight"
            f" WHERE {again}" + (" OR excluded.weight > weight" if renew else "")
        )
        changed = 0
        for record in records:
            changed += self._db.execute(
                statement,
                (
                    record.id,
                    text_key(record.text),
                    record.time,
                    record.source,
                    record.text,
                    record.label,
                    record.weight,
                ),
            ).rowcount
        return changed

    def quarantine(self, source: str, place: str, reason: str) -> bool:
        """Notes a row that is no record, once; inside :meth:`writing`.

        Args:
            source: where it comes from.
            place: file and line, or prediction id.
            reason: what is wrong with it, without its content, which may be private.

        Returns:
            Whether it had not been noted before.
        """
        noted = self._db.execute(
            "INSERT OR IGNORE INTO quarantine (source, place, reason, time) VALUES (?, ?, ?, ?)",
            # A file's name may be no valid Unicode, which SQLite does not take.
            (source, place.encode("utf-8", "backslashreplace").decode(), reason, time.time()),
        )
        return noted.rowcount > 0

    def position(self, source: str) -> Any:
        """How far a source has been read, as it told itself; None at the beginning."""
        row = self._db.execute(
            "SELECT position FROM positions WHERE source = ?", (source,)
        ).fetchone()
        return json.loads(row[0]) if row else None

    def set_position(self, source: str, position: Any) -> None:
        """Notes how far a source has been read, in the transaction of its records."""
        self._db.execute(
            "INSERT OR REPLACE INTO positions VALUES (?, ?)", (source, json.dumps(position))
        )

    # ---------------------------------------------------------------- generations

    def generations(self) -> list[Generation]:
        """All generations, in order."""
        rows = self._db.execute("SELECT * FROM generations ORDER BY number").fetchall()
        return [
            Generation(
                **{
                    **dict(row),
                    "reasons": tuple(json.loads(row["reasons"] or "[]")),
                    "summary": json.loads(row["summary"] or "{}"),
                }
            )
            for row in rows
        ]

    def champion(self) -> Generation | None:
        """The generation whose model is in use; None before the first is founded."""
        row = self._db.execute("SELECT generation FROM champions ORDER BY seq DESC LIMIT 1")
        found = row.fetchone()
        if not found:
            return None
        return next(g for g in self.generations() if g.number == found[0])

    def finish(
        self,
        number: int,
        verdict: str,
        reasons: Sequence[str],
        *,
        model: str | None,
        scores: str | None = None,
        summary: dict[str, Any],
    ) -> None:
        """Ends a generation; inside :meth:`writing`, with all that follows from it.

        Args:
            number: of the generation.
            verdict: what became of its challenger.
            reasons: why, a sentence each.
            model: artifact of its model, None where nothing was promoted.
            scores: artifact of its evaluation.
            summary: figures for the tables.
        """
        self._db.execute(
            "UPDATE generations SET finished = ?, verdict = ?, reasons = ?, model = ?, scores = ?,"
            " summary = ? WHERE number = ?",
            (
                time.time(),
                verdict,
                json.dumps(list(reasons), ensure_ascii=False),
                model,
                scores,
                json.dumps(summary, allow_nan=False),
                number,
            ),
        )
        self._db.execute("DELETE FROM stages WHERE generation = ?", (number,))

    def crown(self, generation: int, why: str) -> None:
        """Puts a generation's model in use; inside :meth:`writing`.

        Args:
            generation: its number.
            why: ``"founded"``, ``"promoted"`` or what else there is to say.
        """
        self._db.execute(
            "INSERT INTO champions (generation, time, why) VALUES (?, ?, ?)",
            (generation, time.time(), why),
        )

    def champions(self) -> list[dict[str, Any]]:
        """All who have been in use, the last of them now: ``generation``, ``time`` and ``why``."""
        rows = self._db.execute("SELECT generation, time, why FROM champions ORDER BY seq")
        return [dict(row) for row in rows]

    def recent_champions(self, count: int) -> set[int]:
        """Generations of the last champions, each counted once.

        Args:
            count: how many.
        """
        line = [seat["generation"] for seat in self.champions()]
        return set(list(dict.fromkeys(reversed(line)))[:count])

    def alarm(self, message: str, detail: dict[str, Any]) -> None:
        """Notes an alarm; inside :meth:`writing`.

        Args:
            message: what it says.
            detail: all of it, ``time`` among it.
        """
        self._db.execute(
            "INSERT INTO alarms (time, message, detail) VALUES (?, ?, ?)",
            (detail["time"], message, json.dumps(detail)),
        )

    def alarms(self, *, pending: bool = False) -> list[dict[str, Any]]:
        """All alarms, in order, in full.

        Args:
            pending: only those that no generation has followed yet.
        """
        rows = self._db.execute("SELECT generation, detail FROM alarms ORDER BY seq")
        return [json.loads(d) for g, d in rows if not pending or g is None]

    def stage(self, generation: int, name: str, compute: Callable[[], Any]) -> Any:
        """The result of a step of a generation, computed once, also over kills.

        Args:
            generation: its number.
            name: of the step.
            compute: gives the result, as JSON knows it.
        """
        row = self._db.execute(
            "SELECT result FROM stages WHERE generation = ? AND name = ?", (generation, name)
        ).fetchone()
        if row:
            return json.loads(row[0])
        text = json.dumps(compute(), allow_nan=False)
        with self.writing():
            self._db.execute("INSERT INTO stages VALUES (?, ?, ?)", (generation, name, text))
        return json.loads(text)

    def state(self, name: str) -> Any:
        """What was kept under a name, None where nothing was."""
        row = self._db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def set_state(self, name: str, value: Any) -> None:
        """Keeps what JSON knows under a name; inside :meth:`writing`."""
        self._db.execute(
            "INSERT OR REPLACE INTO state VALUES (?, ?)", (name, json.dumps(value, allow_nan=False))
        )
