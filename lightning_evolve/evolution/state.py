"""The state of the loop: one directory with a journal, artifacts and what a server has logged."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.artifacts import Artifacts
from lightning_evolve.evolution.database import told
from lightning_evolve.evolution.journal import Journal

JOURNAL = "journal.sqlite"
SERVICE = "service.sqlite"
CORRECTIONS = "corrections"
"""Folder that files of corrections are put into."""
_LOCK, _LOOP = ".lock", ".evolve.lock"
_PATIENCE = 60.0  # seconds that a rollback may take


class State:
    """What a run of ``evolve`` keeps.

    One process writes the journal, by a lock that ends with the process however it ends; any number
    may read it. A server writes a file of its own, ``service.sqlite``.

    Args:
        path: the directory.
        write: whether to take the lock; the directory and the journal are made where there are
            none.

    Raises:
        UsageError: another process writes it, there is no journal to read, or it cannot be read.
    """

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        self._lock = FileLock(path / _LOCK)
        if write:
            _hold(self._lock)
        try:
            self.journal = Journal(path / JOURNAL, create=write)
        except BaseException:
            self._lock.release()
            raise
        self.artifacts = Artifacts(path / "artifacts")

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Leaves the directory to others for a while, such as a rollback, and takes it back.

        Raises:
            UsageError: another process has kept it.
        """
        self._lock.release()
        try:
            yield
        finally:
            _hold(self._lock, _PATIENCE)

    def close(self) -> None:
        """Closes the journal and gives the lock back."""
        self.journal.close()
        self._lock.release()

    def __enter__(self) -> State:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if isinstance(error, sqlite3.Error):  # of a read, which no transaction has told about
            with told(self.path / JOURNAL):
                raise error


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lets one loop at a time have a directory, also while its state is resting.

    Args:
        path: the directory, made where there is none.

    Raises:
        UsageError: another loop has it.
    """
    lock = FileLock(path / _LOOP)
    _hold(lock)
    try:
        yield
    finally:
        lock.release()


def _hold(lock: BaseFileLock, patience: float = 0.0) -> None:
    path = Path(lock.lock_file).parent
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise UsageError(
            f"another process writes {path}: wait for it, stop it, or give another --run_dir"
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot write to {path}: {reason}; choose another --run_dir") from error
