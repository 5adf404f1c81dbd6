"""Corrections of answers, as a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.collection.base import CHUNK, Read, Source
from lightning_evolve.evolution.collection.watched_folder import WatchedFolder, stamp_of
from lightning_evolve.evolution.feedback import FeedbackStore
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.records import Record


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
        stamp = stamp_of(path)
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
