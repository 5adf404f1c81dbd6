"""File formats: from a file to its records, one reader a format."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lightning_evolve.errors import UsageError


class Records(NamedTuple):
    """What a file holds.

    Args:
        columns: names of its columns.
        records: one dictionary a row, in the order of the file.
    """

    columns: list[str]
    records: list[dict[str, Any]]


def suffix_of(path: Path) -> str:
    """What tells the format: the suffix in lower case, that of the packed file for ``.gz``.

    >>> suffix_of(Path("train.JSONL.gz")), suffix_of(Path("train.parquet"))
    ('.jsonl', '.parquet')
    """
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    # Parquet and npz pack themselves; there is no reader for a packed one.
    return ".gz" if name.endswith(".gz") and suffix not in _PACKABLE else suffix


def read_records(path: Path) -> Records:
    """Read a file of a format that its suffix names.

    Args:
        path: the file.

    Raises:
        UsageError: the file is empty or damaged, or not in UTF-8, or of another format.
    """
    reader = READERS.get(suffix_of(path))
    if reader is None:
        raise UsageError(
            f"{str(path)!r} is none of the formats that hold texts with labels: give one of "
            f"{', '.join(READERS)} (all but parquet also as .gz)"
        )
    records = reader(path)
    if not records.records:
        raise UsageError(f"{str(path)!r} has no rows: fill or remove it")
    return records


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, each without its end.

    Args:
        path: the file, which may be packed with gzip.

    Raises:
        UsageError: the file is empty or damaged, or not in UTF-8.
    """
    # Not splitlines: a text may contain other line separators of Unicode.
    lines = re.split(r"\r\n|\r|\n", read_text(path))
    return lines[:-1] if not lines[-1] else lines


def read_text(path: Path) -> str:
    """The text of a file.

    Args:
        path: the file, which may be packed with gzip.

    Raises:
        UsageError: the file is empty or damaged, or not in UTF-8; says at which line.
    """
    try:
        content = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{str(path)!r} is no whole gzip file ({error}): copy it anew") from error
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read ({error.strerror}): check it") from error
    if not content.strip():
        raise UsageError(f"{str(path)!r} is empty: fill or remove it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{str(path)!r} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}; "
            "save the file as UTF-8"
        ) from error


def _read_csv(path: Path) -> Records:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 128 kB
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    records = []
    try:
        named = [name for name in reader.fieldnames or () if name]
        if twice := {name for name in named if named.count(name) > 1}:
            raise UsageError(
                f"{str(path)!r} has two columns called {min(twice)!r}: rename one, or remove it"
            )
        for record in reader:
            if None in record:
                raise UsageError(
                    f"{str(path)!r} has more fields in line {reader.line_num} than its header: put "
                    "texts with commas in double quotes"
                )
            records.append(dict(record))
    except csv.Error as error:
        raise UsageError(
            f"{str(path)!r} is no csv near line {reader.line_num} ({error}): put texts in double "
            "quotes, and double the quotes in them"
        ) from error
    return Records(list(reader.fieldnames or []), records)


def _read_json(path: Path) -> Records:
    text = read_text(path)
    try:
        objects = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{str(path)!r} is no JSON ({error}): mend it") from error
    return _from_objects(path, objects)


def _read_jsonl(path: Path) -> Records:
    objects = []
    # Not splitlines: JSON strings may contain other line separators of Unicode as they are.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                objects.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                said = getattr(error, "msg", str(error)[:80])
                raise UsageError(
                    f"{str(path)!r} has no JSON object in line {number} ({said}): mend it"
                ) from error
    return _from_objects(path, objects)


def _from_objects(path: Path, objects: Any) -> Records:
    if not isinstance(objects, list) or not all(isinstance(item, dict) for item in objects):
        raise UsageError(
            f"{str(path)!r} holds something else than JSON objects: give one object a row, with a "
            "text and a label"
        )
    return Records(list(dict.fromkeys(key for item in objects for key in item)), objects)


def _read_parquet(path: Path) -> Records:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UsageError(
            f"{str(path)!r} is no whole parquet file ({reason}): copy it anew"
        ) from error
    return Records(table.column_names, table.to_pylist())


_PACKABLE = (".csv", ".json", ".jsonl", ".txt")
READERS: dict[str, Callable[[Path], Records]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
