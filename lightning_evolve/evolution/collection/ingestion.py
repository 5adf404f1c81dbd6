"""From sources into the journal, a chunk a transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.collection.base import Source
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.redaction import redact as redact_text


class Collected(NamedTuple):
    """What a collection brought.

    Args:
        added: records that are new, by source.
        repeated: records that were there already, by source.
        quarantined: rows that are no records and were not known as such, by source.
        redactions: what was redacted in new records, by kind.
    """

    added: Counter[str]
    repeated: Counter[str]
    quarantined: Counter[str]
    redactions: Counter[str]


def collect(
    journal: Journal, sources: Sequence[Source], *, redact: bool = True, batches: int | None = None
) -> Collected:
    """Reads all sources on and writes what they give into the journal, a chunk a transaction.

    The counts of all collections are the journal's state ``"redactions"``.

    Args:
        journal: where the records go.
        sources: in the order in which they are read.
        redact: whether e-mail addresses, phone and card numbers leave the texts.
        batches: how many planned batches there are to be in the journal afterwards, all by
            default; asked again after a kill, those that are there are not taken anew.

    Raises:
        UsageError: two sources have one name, a source as a whole cannot be read, or the journal
            cannot be written.
    """
    names = Counter(source.name for source in sources)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UsageError(f"two sources are called {twice[0]!r}: name each once")
    found = Collected(Counter(), Counter(), Counter(), Counter())
    for source in sources:
        for chunk in source.read(journal.position(source.name)):
            if chunk.batch is not None and batches is not None and chunk.batch >= batches:
                break
            counts = Collected(Counter(), Counter(), Counter(), Counter())
            with journal.writing():
                for record in chunk.records:
                    text, redacted = redact_text(record.text) if redact else (record.text, None)
                    if journal.ingest([replace(record, text=text)], renew=source.renews):
                        counts.added[source.name] += 1
                        counts.redactions.update(redacted or {})
                    else:
                        counts.repeated[source.name] += 1
                for place, reason in chunk.bad:
                    counts.quarantined[source.name] += journal.quarantine(
                        source.name, place, reason
                    )
                if counts.redactions:
                    total = Counter(journal.state("redactions") or {}) + counts.redactions
                    journal.set_state("redactions", dict(total))
                journal.set_position(source.name, chunk.position)
            for sums, more in zip(found, counts, strict=True):
                sums.update(more)
    return found
