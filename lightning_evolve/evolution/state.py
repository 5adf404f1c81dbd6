"""The state of the loop: one directory with a journal, artifacts and what a server has logged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.artifacts import Artifacts
from lightning_evolve.evolution.journal import Journal

CONFIG = "config.yaml"
JOURNAL = "journal.sqlite"
SERVICE = "service.sqlite"
CORRECTIONS = "corrections"
"""Folder that files of corrections are put into."""
_LOCK = ".lock"
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
            self._hold()
        try:
            self.journal = Journal(path / JOURNAL, create=write)
        except BaseException:
            self._lock.release()
            raise
        self.artifacts = Artifacts(path / "artifacts")

    def _hold(self, patience: float = 0.0) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=patience)
        except Timeout as error:
            raise UsageError(
                f"another process writes {self.path}: wait for it, stop it, or give another "
                "--run_dir"
            ) from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(
                f"cannot write to {self.path}: {reason}; choose another --run_dir"
            ) from error

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
            self._hold(_PATIENCE)

    def close(self) -> None:
        """Closes the journal and gives the lock back."""
        self.journal.close()
        self._lock.release()

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
