"""Reading files row by row, so that one bad row is told and the others are read all the same."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from lightning_evolve.data.cleaning import normalise
from lightning_evolve.data.columns import find_column
from lightning_evolve.data.formats import suffix_of
from lightning_evolve.errors import UsageError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz")
"""Files that are read; their names may be in upper case."""

LONGEST = 1_000_000  # bytes of a row: more is a file of another kind
LONGEST_LABEL = 200  # characters: more is a text in the place of a label
LATEST = 253_402_300_800  # the year 10000: what is above has been given in milliseconds


class Row(NamedTuple):
    """A row of a file.

    Args:
        number: of its first line, or in parquet of the row, from 1.
        values: by column.
        fault: what is wrong with it, without its content; then there are no values.
    """

    number: int
    values: dict[str, Any]
    fault: str | None = None


def rows(path: Path) -> Iterator[Row]:
    """Reads a file row by row.

    In csv and tsv a quote that is never closed costs its own line only: reading goes on with the
    next one.

    Args:
        path: a file with one of ``SUFFIXES``.

    Yields:
        The rows, good and bad, in their order.

    Raises:
        UsageError: the file as a whole cannot be read, from the start or from here on.
    """
    suffix = suffix_of(Path(path.name.lower().removesuffix(".gz")))
    if suffix == ".parquet":
        yield from _parquet(path)
    else:
        with _opened(path) as file:
            if suffix == ".jsonl":
                yield from _objects(_lines(file))
            else:
                yield from _delimited(path, _lines(file), "\t" if suffix == ".tsv" else ",")


def label_of(value: object) -> str | None:
    """A label as a name, None where there is none.

    Args:
        value: a string or a number.

    Raises:
        ValueError: it is something else; says what.

    >>> label_of(3), label_of("  a  b"), label_of(""), label_of(3.0)
    ('3', 'a b', None, '3')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str | int | float):
        raise ValueError("the label is neither a name nor a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of numbers with a gap in it is one of floats
    label = normalise(checked(str(value), "label"))
    if len(label) > LONGEST_LABEL:
        raise ValueError(f"the label has more than {LONGEST_LABEL} characters")
    return label or None


def text_of(value: object) -> str:
    """A text, cleaned.

    Args:
        value: a string.

    Raises:
        ValueError: it is empty, or something else; says what.
    """
    if value is None:
        raise ValueError("it has no text")
    if not isinstance(value, str):
        raise ValueError("the text is no string")
    text = normalise(checked(value, "text"))
    if not text:
        raise ValueError("it has no text")
    if len(text) > LONGEST:
        raise ValueError(f"the text has more than {LONGEST} characters")
    return text


def time_of(value: object) -> float | None:
    """A time in seconds since 1970, None where there is none.

    Args:
        value: such seconds, or a date and time of ISO 8601, in UTC where it has no zone.

    Raises:
        ValueError: it is something else; says what.

    >>> time_of("1970-01-02"), time_of("1970-01-01T01:00:00+01:00"), time_of("60.5")
    (86400.0, 0.0, 60.5)
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, str):
            try:
                seconds = float(value)
            except ValueError:
                # Python 3.10 does not know the Z.
                value = datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
        if isinstance(value, datetime):
            zone = value.tzinfo or timezone.utc
            seconds = value.replace(tzinfo=zone).timestamp()
        else:
            seconds = float(cast(float, value))
        if not 0 <= seconds < LATEST:
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise ValueError(
            "the time is neither in seconds since 1970 nor as in 2024-12-31T23:59:00Z"
        ) from None
    return seconds


def checked(text: str, what: str) -> str:
    """The text, if it can be written as UTF-8.

    Raises:
        ValueError: it cannot; says of what.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the {what} is no valid Unicode") from None
    return text


def column(columns: Sequence[str], wanted: str) -> str | None:
    """The column of a name or, for the defaults, of a usual other name; None without a clear one.

    Args:
        columns: the columns that there are.
        wanted: ``"text"`` or ``"label"``, or the name that the user gave.
    """
    try:
        return find_column("", columns, "", wanted)
    except UsageError:
        return None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        opener = gzip.open if path.name.lower().endswith(".gz") else open
        with opener(path, "rb") as file:
            yield cast(IO[bytes], file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{str(path)!r} is no whole gzip file ({error}): copy it anew") from error
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read ({error.strerror}): check it") from error


_TOO_LONG = f"it is longer than {LONGEST} bytes"


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None stands for one that is too long to be kept in memory."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        long = len(line) > LONGEST
        while len(line) > LONGEST and not line.endswith(b"\n"):
            line = file.readline(LONGEST + 1) or b"\n"
        yield number, None if long else line


def _objects(lines: Iterator[tuple[int, bytes | None]]) -> Iterator[Row]:
    for number, line in lines:
        if line is None:
            yield Row(number, {}, _TOO_LONG)
        elif line.strip():
            try:
                found = json.loads(line.decode())
            except UnicodeDecodeError:
                yield Row(number, {}, "it is not in UTF-8")
            except (ValueError, RecursionError):
                yield Row(number, {}, "it is no JSON")
            else:
                if isinstance(found, dict):
                    yield Row(number, found)
                else:
                    yield Row(number, {}, "it is no JSON object")


class _TooLongError(Exception):
    """A row of several lines that takes in too many of them."""


class _Giving:
    """Gives lines to ``csv.reader``, and again where a row turned out to be none."""

    def __init__(self, lines: Iterator[tuple[int, bytes | None]]) -> None:
        self._lines = lines
        self._returned: deque[tuple[int, bytes | None]] = deque()
        self.taken: list[tuple[int, bytes | None]] = []
        self._size = 0

    def __iter__(self) -> _Giving:
        return self

    def __next__(self) -> str:
        number, line = self._returned.popleft() if self._returned else next(self._lines)
        self.taken.append((number, line))
        self._size += len(line or b"")
        if line is None or self._size > LONGEST:
            raise _TooLongError
        return line.decode("utf-8", "surrogateescape")  # which rows are none is seen later

    def next_row(self) -> None:
        """What follows is another row."""
        self.taken, self._size = [], 0

    def give_back(self) -> None:
        """All lines of this row but the first are given again."""
        self._returned.extendleft(reversed(self.taken[1:]))


def _delimited(
    path: Path, lines: Iterator[tuple[int, bytes | None]], delimiter: str
) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # as in data.formats; the length is looked after here
    giving = _Giving(lines)
    reader = csv.reader(giving, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        giving.next_row()
        fault = None
        fields: list[str] = []
        try:
            fields = next(reader)
            "".join(fields).encode()
        except StopIteration:
            return
        except csv.Error:
            fault = "its double quotes do not match"
            giving.give_back()
        except _TooLongError:
            fault = _TOO_LONG
            giving.give_back()
        except UnicodeEncodeError:
            fault = "it is not in UTF-8"
        number = giving.taken[0][0]
        if header is None:
            if fault:
                raise UsageError(f"the header of {str(path)!r} cannot be read ({fault}): mend it")
            header = fields or None
        elif fault or (fields and len(fields) != len(header)):
            yield Row(number, {}, fault or f"it has {len(fields)} fields, the header {len(header)}")
        elif fields:
            yield Row(number, dict(zip(header, fields, strict=True)))


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                columns = [_values(array) for array in batch.columns]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield Row(number, dict(zip(batch.schema.names, values, strict=True)))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UsageError(
            f"{str(path)!r} is no whole parquet file ({reason}): copy it anew"
        ) from error


def _values(array: Any) -> list[Any]:
    try:
        return cast(list[Any], array.to_pylist())
    except (ValueError, OverflowError):  # of UTF-8, or of a date that Python does not know
        return [_value(scalar) for scalar in array]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return "\ud800"  # text_of and time_of tell that it is none
