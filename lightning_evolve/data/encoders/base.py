"""The contract of an encoder: rows to tensors, once and for all."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from typing_extensions import Self

from lightning_evolve.data.cache import Cache, Entry, class_digest
from lightning_evolve.data.rows import Rows
from lightning_evolve.errors import UsageError
from lightning_evolve.tasks import Tensors


class Encoder(ABC):
    """Turns rows into the keyword inputs of a learner.

    Attributes:
        kind: what it reads, ``"texts"`` or ``"images"``.
        learns: whether `fit` learns from the training rows, so that what `encode` gives depends
            on them.
        cached: whether encoding takes so long that its result is worth keeping on the disk.
        vocab_size: number of token ids, known after `fit`; 0 where there are none.
        options: the arguments that the encoder was built with, by name.
    """

    kind: ClassVar[str] = "texts"
    learns: ClassVar[bool] = False
    cached: ClassVar[bool] = True
    vocab_size: int = 0
    options: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Keeps the options of every encoder, so that it can be saved and built again."""
        encoder = super().__new__(cls)
        given = inspect.signature(cls.__init__).bind(encoder, *args, **options).arguments
        encoder.options = dict([*given.items()][1:])
        return encoder

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the result depends on beside the rows, as JSON knows it."""

    @abstractmethod
    def fit(self, rows: Rows) -> None:
        """Get ready to encode.

        Args:
            rows: the training rows, the only ones that may be learned from.
        """

    @abstractmethod
    def encode(self, rows: Rows) -> Tensors:
        """Encode rows.

        Args:
            rows: any rows of the encoder's kind.

        Returns:
            Keyword inputs of a learner, each of shape ``[rows, ...]``.
        """

    def learned(self) -> Entry:
        """What `fit` has learned from the training rows; nothing, where it does not learn."""
        assert not self.learns, f"{type(self).__name__} learns and does not say what"
        return Entry({}, {})

    def restore(self, learned: Entry) -> None:
        """Get ready to encode by what another encoder with the same options has learned.

        Args:
            learned: what `learned` of the other gave.
        """
        assert not self.learns, f"{type(self).__name__} learns and cannot be restored"
        self.fit(Rows([], texts=[]))


def encode(encoder: Encoder, training: Rows, rows: Rows, cache: Cache) -> tuple[Tensors, int]:
    """Encode rows, or find them encoded on the disk.

    Args:
        encoder: what encodes.
        training: the rows that the encoder may learn from.
        rows: the rows to encode.
        cache: where encoded rows are kept.

    Returns:
        Keyword inputs of a learner, each of shape ``[rows, ...]``, and the size of the vocabulary.

    Raises:
        UsageError: the encoder is for another kind of rows.
    """
    name = type(encoder).__name__
    if encoder.kind != rows.kind:
        remedy = (
            "Pixels"
            if rows.kind == "images"
            else "Words, NGrams, CheckpointTokenizer or FrozenFeatures"
        )
        raise UsageError(
            f"encoder {name} reads {encoder.kind}, but the source has {rows.kind}: use {remedy}"
        )

    def make() -> Entry:
        encoder.fit(training)
        return Entry(encoder.encode(rows), {"vocab_size": encoder.vocab_size})

    code = class_digest(type(encoder)) if encoder.cached else None
    if code is None:
        entry = make()
    else:
        key = {
            "encoder": name,
            "code": code,
            "settings": encoder.settings(),
            "training": training.digest() if encoder.learns else "",
            "rows": rows.digest(),
        }
        entry = cache.get(name.lower(), key, make)
    return entry.tensors, int(entry.facts["vocab_size"])
