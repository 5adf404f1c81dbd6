"""A folder that files are put into, as a source."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution import reading
from lightning_evolve.evolution.collection.base import CHUNK, Bad, Read, Source, item_of
from lightning_evolve.evolution.records import Record


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
        self.path = Path(os.path.expanduser(path))
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
        known = {name: known[name] for name in known if _is_file(self.path / name)}
        for path in files:
            try:
                stamp = stamp_of(path)
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
            and _is_file(place)
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
                yield item_of(place, self.name, text, label, when, self.trust)
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


def stamp_of(path: Path) -> list[int]:
    """What changes whenever a file does: size, time of its content, time of its entry, inode.

    Args:
        path: the file.

    Raises:
        OSError: it is not there, or may not be looked at.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _is_file(path: Path) -> bool:
    """Whether a file is there; a link into a folder that may not be entered leads to none."""
    try:
        return path.is_file()
    except OSError:
        return False
