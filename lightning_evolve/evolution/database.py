"""SQLite files that several processes share and that outlive a kill or a power cut."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_evolve.errors import UsageError


def opened(path: Path, schema: str, version: int, *, create: bool) -> sqlite3.Connection:
    """Opens a database, whose connection begins no transactions of its own.

    What a transaction has written when it ends outlives a power cut. Threads may share the
    connection if they take turns.

    Args:
        path: the file.
        schema: statements that make its tables, each ending a line by a semicolon.
        version: of the schema, from 1.
        create: whether to make the tables where there are none.

    Raises:
        UsageError: the file is damaged, cannot be written, has no tables and is not to get any, or
            a newer version of this package wrote it.
    """
    with told(path):
        db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA synchronous=FULL")
        if create and _version(db) == 0:
            _write_ahead(db)
            with transaction(db, path):
                if _version(db) == 0:  # no other process was faster
                    for statement in schema.split(";\n"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version={version}")
        found = _version(db)
        if found == 0:
            raise UsageError(f"{path} is no journal of evolve: choose another --run_dir")
        if found > version:
            raise UsageError(
                f"{path} is of version {found} and this package knows versions up to {version}: "
                "update lightning_evolve"
            )
    return db


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _write_ahead(db: sqlite3.Connection) -> None:
    """Turns to WAL; of processes that do so at once SQLite lets one and tells the others off."""
    ends = time.monotonic() + 30
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:  # noqa: PERF203 (tens of turns)
            if "locked" not in str(error) or time.monotonic() > ends:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def transaction(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """One transaction: all of it is there when the block ends well, else nothing.

    Args:
        db: a connection that begins no transactions of its own.
        path: the database.

    Raises:
        UsageError: the disk is full, or the database cannot be written.
    """
    with told(path):
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # a full disk has rolled it back already
                db.execute("ROLLBACK")
            raise


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Tells what SQLite cannot do as a mistake that the user can mend.

    Args:
        path: the database.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        reason = str(error)
        if "full" in reason:
            remedy = "free some space and start again; nothing that was acknowledged is lost"
        elif "locked" in reason:
            remedy = "another process holds it; stop that one first"
        else:
            remedy = "look at its permissions and at the disk"
        raise UsageError(f"cannot write {path} ({reason}): {remedy}") from error
    except sqlite3.DatabaseError as error:
        raise UsageError(
            f"{path} is damaged or no journal ({error}): restore it from a copy"
        ) from error
