r"""Processing: which of the collected records are learnt from, and which are held out to judge by.

Each record is decided in the order in which it came in:

* without a label it is ``unlabelled``, and is there for the monitoring;
* with a label that is not known it is ``refused``, if new classes are;
* with a text that is there, it is a ``duplicate`` under the same label; under another the greater
  weight wins, of equals the later, and the loser is ``superseded``;
* with a text that is nearly one that is there, it is a ``duplicate`` under the same label; and
  also under another, if the two texts belong to different parts: what is nearly held out is never
  trained on, nor the other way round;
* otherwise it is ``kept``, in the part that the digest of its text decides, for ever.

Two texts are nearly the same if their sets of character 5-grams have a Jaccard index of at least
``near``. Candidates are found by MinHash (Broder 1997) and locality-sensitive hashing: two texts of
index :math:`s` share one of :math:`b` bands of :math:`r` values with probability
:math:`1 - (1 - s^r)^b`, here .9996 at .8; each candidate is then compared exactly. The bands are a
table of the journal, so that a process that starts finds them, and a kill cannot part them from
the records.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections import Counter
from collections.abc import Collection
from functools import cache
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

from lightning_evolve.data.cleaning import normalise
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.records import part_of

CHUNK = 500  # records of a transaction
SHINGLE = 5  # characters: about a word, so that one changed word of a sentence still is near
BANDS, WIDTH = 20, 5  # b and r
NEAREST = 50  # candidates that are compared: near ones share most bands, so they come first
LEAST_NEAR = 0.75  # below it the bands miss more than one in 200


class Processed(NamedTuple):
    """What became of the records.

    Args:
        counts: ``"kept"``, ``"duplicate"``, ``"near duplicate"``, ``"near held out"`` (nearly a
            text of another part), ``"superseded"`` (by a label of more weight or a later one),
            ``"unlabelled"``, ``"refused"`` and ``"empty"``.
    """

    counts: Counter[str]


class Processing:
    """Decides what becomes of the records that are new.

    Args:
        near: least Jaccard index of texts that count as the same, 0.75 to 1.
        tune: share of the texts that are held out to choose by.
        gate: share of the texts that are held out to judge by.
        new_classes: whether labels that are not known are admitted or refused.
        redact: whether e-mail addresses, phone and card numbers leave the texts; that is done by
            :func:`collection.collect`, before a text is in the journal.

    Raises:
        UsageError: an argument makes no sense.
    """

    def __init__(
        self,
        *,
        near: float = 0.8,
        tune: float = 0.15,
        gate: float = 0.15,
        new_classes: Literal["admit", "refuse"] = "admit",
        redact: bool = True,
    ) -> None:
        if not LEAST_NEAR <= near <= 1:
            raise UsageError(f"near is {near}: give {LEAST_NEAR} to 1")
        if not (tune >= 0 and gate >= 0 and tune + gate < 1):
            raise UsageError(
                f"tune is {tune} and gate {gate}: give shares that leave some to train on"
            )
        if new_classes not in ("admit", "refuse"):
            raise UsageError(f"new_classes is {new_classes!r}: give 'admit' or 'refuse'")
        self.near = near
        self.tune = tune
        self.gate = gate
        self.new_classes = new_classes
        self.redact = redact

    def process(self, journal: Journal, known: Collection[str] | None = None) -> Processed:
        """Decides about all records with the status ``new``.

        Killed at any moment and called again, it comes to the same.

        Args:
            journal: where they are.
            known: names of the classes that there are, all by default; only looked at where new
                ones are refused.

        Raises:
            UsageError: the journal cannot be written, or the package that finds near-duplicates
                is missing.
        """
        refused = known if self.new_classes == "refuse" else None
        counts: Counter[str] = Counter()
        while True:
            with journal.writing():
                chunk = journal.execute(
                    "SELECT seq, id, key, source, text, label, weight FROM records"
                    " WHERE status = 'new' ORDER BY seq LIMIT ?",
                    (CHUNK,),
                ).fetchall()
                verdicts = [self._decide(journal, record, refused) for record in chunk]
            if not chunk:
                return Processed(counts)
            counts.update(verdicts)

    def _decide(self, journal: Journal, record: sqlite3.Row, known: Collection[str] | None) -> str:
        """Decides about one record, writes it down and returns what is counted."""
        status, part, counted = self._verdict(journal, record, known)
        journal.execute(
            "UPDATE records SET status = ?, part = ? WHERE seq = ?", (status, part, record["seq"])
        )
        return counted

    def _verdict(
        self, journal: Journal, record: sqlite3.Row, known: Collection[str] | None
    ) -> tuple[str, str | None, str]:
        """Status, part, and what is counted."""
        label, place = record["label"], f"record {record['id']}"
        text = normalise(record["text"]).casefold()
        if not text:
            journal.quarantine(record["source"], place, "it has no text")
            return "refused", None, "empty"
        if label is None:
            return "unlabelled", None, "unlabelled"
        if known is not None and label not in known:
            journal.quarantine(record["source"], place, f"label {label!r:.120} is not known")
            return "refused", None, "refused"

        there = _there(journal, record["key"])
        if there is None:
            part = part_of(record["key"], self.tune, self.gate)
            grams = shingles(text)
            bands = _bands(grams)
            for other in self._near(journal, grams, bands):
                if other["label"] == label:
                    return "duplicate", None, "near duplicate"
                if other["part"] != part:
                    return "duplicate", None, "near held out"
            journal.execute_many(
                "INSERT OR IGNORE INTO bands VALUES (?, ?)",
                [(band, record["key"]) for band in bands],
            )
            return "kept", part, "kept"
        # The part that it has had, not that of today's shares.
        part = there["part"]
        if there["label"] == label:
            if there["status"] != "held" or record["source"] == there["source"]:
                return "duplicate", None, "duplicate"
            # Another source says what was held back, in other letters: its own word counts.
            return "kept", part, "kept"
        if not _prevails(record, there):
            return "superseded", part, "superseded"
        journal.execute("UPDATE records SET status = 'superseded' WHERE seq = ?", (there["seq"],))
        return "kept", part, "kept"

    def _near(self, journal: Journal, grams: set[str], bands: list[int]) -> list[sqlite3.Row]:
        """Records of other texts that are nearly this one."""
        marks = ", ".join("?" * len(bands))
        candidates = journal.execute(
            f"SELECT key FROM bands WHERE band IN ({marks})"  # noqa: S608 (only question marks)
            " GROUP BY key ORDER BY count(*) DESC, key LIMIT ?",
            (*bands, NEAREST),
        ).fetchall()
        found = [_there(journal, candidate["key"]) for candidate in candidates]
        return [
            other
            for other in found
            # What is held back may be poison, and is no reason to turn its like away.
            if other
            and other["status"] != "held"
            and jaccard(grams, shingles(normalise(other["text"]).casefold())) >= self.near
        ]


def _there(journal: Journal, key: str) -> sqlite3.Row | None:
    """The record by which a text is there: the one that is in use, or else was last."""
    found: sqlite3.Row | None = journal.execute(
        "SELECT seq, source, text, label, weight, part, status FROM records"
        " WHERE key = ? AND part IS NOT NULL AND status != 'new'"
        " ORDER BY status != 'superseded' DESC, seq DESC LIMIT 1",
        (key,),
    ).fetchone()
    return found


def _prevails(record: sqlite3.Row, there: sqlite3.Row) -> bool:
    # The store of feedback has weighed its voices already: its last word replaces an earlier one.
    if record["source"].startswith("feedback:") and there["source"].startswith("feedback:"):
        return True
    return bool(record["weight"] >= there["weight"])


def shingles(text: str) -> set[str]:
    """The character 5-grams of a text; of a shorter one the text itself.

    >>> sorted(shingles("a text"))
    [' text', 'a tex']
    """
    return {text[n : n + SHINGLE] for n in range(max(1, len(text) - SHINGLE + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    """How much of what two sets have is common to both.

    >>> jaccard({"a", "b"}, {"b", "c"})
    0.3333333333333333
    """
    common = len(one & other)
    return common / (len(one) + len(other) - common)


@cache
def _minhash() -> Any:
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise UsageError(
            "near-duplicates are found by a package of an extra: "
            "pip install lightning-evolve[evolution]"
        ) from error
    # All that the values depend on is named, for they are compared with those of earlier versions.
    return MinHash(num_perm=BANDS * WIDTH, seed=1, hashfunc=zlib.crc32, scheme="affine32")


def _bands(grams: set[str]) -> list[int]:
    """Digests of the bands of a text's MinHash, as SQLite's integers."""
    minhash = _minhash()
    minhash.clear()
    minhash.update_batch([gram.encode() for gram in grams])
    values = minhash.hashvalues.reshape(BANDS, WIDTH)
    return [
        int.from_bytes(blake2b(bytes([number]) + row.tobytes(), digest_size=8).digest(), "big")
        - 2**63
        for number, row in enumerate(values)
    ]
