"""Records: what all sources of the loop are read into."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from lightning_evolve.data.cleaning import normalise

Part = str
"""``"train"``, ``"tune"`` (held out, to choose by) or ``"gate"`` (held out, to judge by)."""


@dataclass(frozen=True)
class Record:
    """One observation: a text, and its class where that is known.

    Args:
        time: when it was made, in seconds since 1970 (UTC), as its source has it.
        source: where it comes from, such as ``"folder:inbox"`` or ``"feedback"``.
        text: the text.
        label: name of the class, None where it is not known.
        weight: how far the source is trusted, above 0; an ordinary one has 1.
    """

    time: float
    source: str
    text: str
    label: str | None = None
    weight: float = 1.0

    @property
    def id(self) -> str:
        """Digest of the text and the label: the same observation twice is one record.

        >>> Record(0.0, "a", "Fine. ", "good").id == Record(1.0, "b", " Fine.", "good").id
        True
        >>> Record(0.0, "a", "Fine.", "good").id == Record(0.0, "a", "Fine.", None).id
        False
        """
        label = "" if self.label is None else f"={self.label}"
        return digest(f"{normalise(self.text)}\0{label}")


def text_key(text: str) -> str:
    """Digest of a text alone, whatever its case and white space: what membership goes by.

    >>> text_key("Fine.") == text_key(" fine. ")
    True
    """
    return digest(normalise(text).casefold())


def part_of(key: str, tune: float, gate: float) -> Part:
    """Which part a text belongs to, for ever, as a function of its key alone.

    So no text that a model was chosen or judged by is ever trained on, in whatever order, from
    whatever source and under whatever label it comes.

    Args:
        key: of the text, see :func:`text_key`.
        tune: share of the texts to choose by.
        gate: share of the texts to judge by.

    >>> parts = [part_of(text_key(str(n)), 0.15, 0.15) for n in range(1000)]
    >>> [parts.count(part) for part in ("train", "tune", "gate")]
    [695, 154, 151]
    """
    place = int(key[:12], 16) / 16**12
    return "gate" if place < gate else "tune" if place < gate + tune else "train"


def digest(text: str) -> str:
    """Returns 128 bits that stand for a text, in hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
