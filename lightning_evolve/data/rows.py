"""Rows: what every source is read into, before anything is encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_evolve.errors import UsageError

Images = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """Labelled texts or labelled images; exactly one of the two.

    Args:
        labels: name of the class of each row; empty strings where the class is not known.
        texts: the texts, for a source of text.
        images: uint8 in 0..255 or float in 0..1, of shape ``[rows, height, width]`` or
            ``[rows, height, width, channels]``, for a source of images.

    >>> rows = Rows(["a", "b"], texts=["first", "second"])
    >>> len(rows), rows.select([1]).texts
    (2, ['second'])
    """

    labels: list[str]
    texts: list[str] | None = None
    images: Images | None = None

    def __post_init__(self) -> None:
        assert (self.texts is None) != (self.images is None), "rows hold texts or images"
        data: Sequence[str] | Images = self.texts if self.texts is not None else self.images  # type: ignore[assignment]
        assert len(data) == len(self.labels), "one label a row"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kind(self) -> str:
        """What the rows hold: ``"texts"`` or ``"images"``."""
        return "images" if self.texts is None else "texts"

    @property
    def keys(self) -> list[str]:
        """What makes two rows duplicates of each other: the text itself, or an image's digest."""
        if self.texts is not None:
            return self.texts
        assert self.images is not None
        return [
            hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest() for image in self.images
        ]

    def select(self, numbers: Iterable[int]) -> Rows:
        """The rows with these numbers, in this order."""
        chosen = [int(number) for number in numbers]
        return Rows(
            labels=[self.labels[n] for n in chosen],
            texts=None if self.texts is None else [self.texts[n] for n in chosen],
            images=None if self.images is None else self.images[chosen],
        )

    def digest(self) -> str:
        """Digest of the data and its order (not of the labels), to key a cache with."""
        content = hashlib.blake2b(digest_size=16)
        if self.texts is not None:
            for text in self.texts:
                encoded = text.encode("utf-8", "surrogatepass")
                content.update(len(encoded).to_bytes(8, "little"))
                content.update(encoded)
        if self.images is not None:
            content.update(f"{self.images.dtype} {self.images.shape}".encode())
            content.update(np.ascontiguousarray(self.images).tobytes())
        return content.hexdigest()


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Returns the rows of several parts of the same kind, one after the other.

    Args:
        parts: all of texts, or all of images of one size.

    >>> concatenate([Rows(["a"], texts=["x"]), Rows(["b"], texts=["y"])]).texts
    ['x', 'y']

    Raises:
        UsageError: texts and images, or images of several sizes.
    """
    shapes = {None if part.images is None else part.images.shape[1:] for part in parts}
    if len(shapes) > 1:
        found = " and ".join(
            sorted("texts" if s is None else f"images of {list(s)}" for s in shapes)
        )
        raise UsageError(f"one source has {found}: give all of its files the same kind and size")
    labels = [label for part in parts for label in part.labels]
    if parts[0].texts is not None:
        return Rows(labels, texts=[text for part in parts for text in part.texts or []])
    return Rows(labels, images=np.concatenate([part.images for part in parts]))
