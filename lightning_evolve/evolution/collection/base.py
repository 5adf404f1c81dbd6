"""The contract of a source: records in chunks, each with how far the source has been read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning_evolve.evolution import reading
from lightning_evolve.evolution.records import Record

CHUNK = 500  # rows of a transaction


class Bad(NamedTuple):
    """A row that is no record.

    Args:
        place: file and line, or split and row.
        reason: what is wrong with it.
    """

    place: str
    reason: str


class Read(NamedTuple):
    """A chunk of a source.

    Args:
        records: in their order.
        bad: rows that are none.
        position: how far the source has been read with this chunk, as JSON knows it.
        batch: number of the planned batch that the chunk is, from 0; None without a plan.
    """

    records: list[Record]
    bad: list[Bad]
    position: Any
    batch: int | None = None


class Source(ABC):
    """Something that records come from.

    Subclasses set ``name``, which tells the source from all others and does not change.
    """

    name: str
    renews = False
    """Whether saying again what is there already is news; see :meth:`Journal.ingest`."""

    @abstractmethod
    def read(self, position: Any) -> Iterator[Read]:
        """Reads on.

        Args:
            position: of the last chunk that was committed, None at the beginning.

        Yields:
            The chunks that follow, in an order that is a function of what is there.

        Raises:
            UsageError: the source as a whole cannot be read.
        """


def item_of(
    place: str, source: str, text: object, label: object, when: object, trust: float = 1.0
) -> Record | Bad:
    """Makes a record of a row, or says what is wrong with it.

    Args:
        place: file and line, or split and row.
        source: name of the record's source.
        text: as it was read.
        label: as it was read; nothing for a record without one.
        when: seconds since 1970, or as ISO 8601 has it.
        trust: weight of the record.
    """
    try:
        seconds = reading.time_of(when)
        assert seconds is not None
        return Record(seconds, source, reading.text_of(text), reading.label_of(label), trust)
    except ValueError as error:
        return Bad(place, str(error))
