"""The pool: the records of finished and current generations, encoded, by what they are for."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_evolve.data.cache import Cache, Entry, class_digest
from lightning_evolve.data.rows import Rows
from lightning_evolve.evolution.artifacts import digest_of
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.model import Model
from lightning_evolve.evolution.records import digest
from lightning_evolve.evolution.training import Examples
from lightning_evolve.tasks import Tensors

Mask = NDArray[np.bool_]


class Pool:
    """Records of generations with what a model's encoder makes of them.

    Args:
        journal: where the records are.
        model: whose encoder encodes them.
        cache: where encoded rows are kept, so that each is encoded once.
        last: number of the last generation.

    Attributes:
        seq, key, text, label, weight, part, source, generation: a column each, of all records that
            the generations have taken; an unknown label is an empty string.
        labelled: which of them have a label that is in use.
        kept: which of those may be learned from or judged by: the rest is held back.
    """

    def __init__(self, journal: Journal, model: Model, cache: Cache, last: int) -> None:
        rows = journal.execute(
            "SELECT seq, key, text, coalesce(label, '') AS label, weight, coalesce(part, '') AS"
            " part, source, generation, status FROM records WHERE generation <= ? ORDER BY"
            " generation, seq",
            (last,),
        ).fetchall()

        def column(name: str, kind: Any = object) -> NDArray[Any]:
            # Strings as objects: in an array of their own kind, one long one makes all as wide.
            return np.array([row[name] for row in rows], dtype=kind)

        self.seq, self.generation = column("seq", np.int64), column("generation", np.int64)
        self.key, self.label, self.part = column("key"), column("label"), column("part")
        self.source, self.weight = column("source"), column("weight", np.float64)
        self.kept: Mask = column("status") == "kept"
        self.labelled: Mask = self.kept | (column("status") == "held")
        self.text = [row["text"] for row in rows]
        self._encoder = model.encoder
        self.inputs = self._encoded(model, cache)

    def _encoded(self, model: Model, cache: Cache) -> Tensors:
        texts = [
            [self.text[n] for n in np.flatnonzero(self.generation == g)]
            for g in np.unique(self.generation)
        ]
        parts = encoded(model, texts, cache)
        return {name: torch.cat([p[name] for p in parts]) for name in parts[0]} if parts else {}

    def encoded_by(self, model: Model, cache: Cache) -> Pool:
        """The same rows as another model's encoder sees them; this pool if it sees the same.

        Args:
            model: whose encoder encodes them.
            cache: where encoded rows are kept.
        """
        if model.encoder is self._encoder or not model.encoder.learns:
            return self
        other = copy(self)
        other._encoder = model.encoder
        other.inputs = self._encoded(model, cache)
        return other

    def __len__(self) -> int:
        return len(self.seq)

    def select(self, mask: Mask) -> Tensors:
        """Encoded rows.

        Args:
            mask: which, ``[rows]``.
        """
        numbers = torch.from_numpy(np.flatnonzero(mask))
        return {name: tensor[numbers] for name, tensor in self.inputs.items()}

    def labels(self, mask: Mask, classes: Sequence[str]) -> Tensor:
        """Numbers of the classes of rows, -1 where that is unknown or none of these.

        Args:
            mask: which rows.
            classes: names of the classes.
        """
        number = {name: n for n, name in enumerate(classes)}
        return torch.tensor([number.get(name, -1) for name in self.label[mask]], dtype=torch.int64)

    def examples(self, mask: Mask, classes: Sequence[str]) -> Examples:
        """Rows to learn from, each as likely as its source is trusted.

        Args:
            mask: which, all of known classes.
            classes: names of the classes.
        """
        labels = self.labels(mask, classes)
        assert bool((labels >= 0).all()), "only rows of known classes are learned from"
        return Examples(self.select(mask), labels, torch.from_numpy(self.weight[mask]))

    def sample(self, mask: Mask, most: int) -> Mask:
        """Of more rows than ``most``, those whose keys come first: always the same ones.

        A key is a digest, so that they are a random sample; it changes only where rows come or go.

        Args:
            mask: which rows.
            most: how many at most.
        """
        numbers = np.flatnonzero(mask)
        if len(numbers) <= most:
            return mask
        chosen = np.zeros_like(mask)
        # The digest of the key, as the key itself has decided on the part.
        order = np.argsort([digest(key) for key in self.key[numbers]], kind="stable")
        chosen[numbers[order[:most]]] = True
        return chosen


def encoded(model: Model, parts: Sequence[Sequence[str]], cache: Cache) -> list[Tensors]:
    """Encodes texts, or finds them encoded on the disk.

    Args:
        model: whose encoder encodes them.
        parts: texts that are kept together, such as those of a generation.
        cache: where encoded rows are kept.

    Returns:
        The encoded rows of each part.
    """
    encoder = model.encoder
    code = class_digest(type(encoder)) if encoder.cached else None
    if code is None:
        return [model.encode(texts) for texts in parts]
    learned = encoder.learned()
    key = {
        "encoder": type(encoder).__name__,
        "code": code,
        "settings": encoder.settings(),
        "learned": [digest_of(learned.tensors), digest(repr(sorted(learned.facts.items())))],
    }
    name = f"evolution-{type(encoder).__name__.lower()}"
    return [
        cache.get(
            name,
            {**key, "rows": Rows([""] * len(texts), texts=list(texts)).digest()},
            lambda texts=texts: Entry(model.encode(texts), {}),  # type: ignore[misc]
        ).tensors
        for texts in parts
    ]
