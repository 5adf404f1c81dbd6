"""The champion in use: loaded once, and replaced when the journal names another."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import NamedTuple

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.artifacts import Artifacts
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.model import Model

_log = logging.getLogger(__name__)
_LOOKS_EVERY = 0.5  # seconds
_TRIES_AGAIN_AFTER = 30.0  # seconds


class Champion(NamedTuple):
    """A generation and its model.

    Args:
        generation: its number.
        model: what predicts.
    """

    generation: int
    model: Model


class CurrentChampion:
    """The champion of a run, kept current by a thread.

    A promotion or a rollback is another process's entry in the journal. Its model is loaded beside
    the one in use, which goes on predicting; one that cannot be loaded is told and not used.

    Args:
        run: directory of the run.

    Raises:
        UsageError: there is no champion, or its model cannot be loaded.
    """

    def __init__(self, run: Path) -> None:
        self._journal = Journal(run / "journal.sqlite")
        self._artifacts = Artifacts(run / "artifacts")
        self._entry = self._newest()
        self.in_use = self._load()
        self.problem: str | None = None
        threading.Thread(target=self._watch, name="champion", daemon=True).start()

    def _newest(self) -> int:
        found: int | None = self._journal.execute("SELECT max(seq) FROM champions").fetchone()[0]
        return found or 0

    def _load(self) -> Champion:
        generation = self._journal.champion()
        if generation is None or generation.model is None:
            raise UsageError(f"{self._journal.path} names no champion that has a model")
        return Champion(generation.number, Model.load(self._artifacts, generation.model))

    def _watch(self) -> None:
        tries_again = 0.0
        while True:
            time.sleep(_LOOKS_EVERY)
            try:
                newest = self._newest()
                due = self.problem is not None and time.monotonic() >= tries_again
                if newest == self._entry and not due:
                    continue
                tries_again = time.monotonic() + _TRIES_AGAIN_AFTER
                self._entry = newest
                self.in_use = self._load()
            # Whatever is wrong with the new one, the old one serves on.
            except Exception as error:
                problem = f"generation {self.in_use.generation} serves on: {error}"
                if problem != self.problem:
                    _log.error(problem)
                self.problem = problem
                tries_again = time.monotonic() + _TRIES_AGAIN_AFTER
            else:
                self.problem = None
