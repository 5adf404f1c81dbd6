"""Experiences: a while with the same classes, then others take over their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_evolve.data.table import Table
from lightning_evolve.tasks import Task

QUERIES = 15  # most query rows of each class of an experience that is evaluated


@dataclass(frozen=True)
class Drift:
    """An endless sequence of experiences, each drawn when it is asked for.

    The classes of an experience are as likely as each other. Two experiences of a round have no
    class in common; when all classes have had their turn, a new round begins in another order, and
    its first experience may have some of the one before.

    Args:
        table: the encoded rows.
        rows: row numbers by class, of the classes to draw from.
        ways: classes of an experience.
        period: mini-batches of an experience.
        batch_size: rows of a mini-batch.
        seed: numbers that tell this sequence of experiences from all others.
    """

    table: Table
    rows: dict[int, Tensor]
    ways: int
    period: int
    batch_size: int
    seed: Sequence[int]

    def classes(self, experience: int) -> list[int]:
        """The classes of an experience, in the order of the labels that they get."""
        round_, place = divmod(experience, len(self.rows) // self.ways)
        order = np.random.default_rng([*self.seed, 0, round_]).permutation(list(self.rows))
        return [int(label) for label in order[place * self.ways : (place + 1) * self.ways]]

    def task(self, index: int) -> Task:
        """A step of the stream.

        Args:
            index: its number; every ``period`` steps an experience ends.

        Returns:
            A task with one support batch and a query batch of ``batch_size`` other rows.
        """
        classes = self.classes(index // self.period)
        pools = [self.rows[label] for label in classes]
        generator = np.random.default_rng([*self.seed, 1, index])
        rows, labels = self._draw(generator, pools, 2)
        (support, query), (seen, asked) = rows.chunk(2), labels.chunk(2)
        return Task(
            support=(self.table.batch(support, seen),),
            query=self.table.batch(query, asked),
            index=index,
            name=self._name(classes),
        )

    def experience(self, index: int) -> Task:
        """A whole experience as one task.

        Args:
            index: its number in the sequence.

        Returns:
            A task with ``period`` support batches in their order, and as query up to ``QUERIES``
            rows of each class, a third of its rows at most, which are in no support batch.
        """
        classes = self.classes(index)
        generator = np.random.default_rng([*self.seed, 2, index])
        queries, pools = [], []
        for label in classes:
            rows = self.rows[label]
            rows = rows[torch.from_numpy(generator.permutation(len(rows)))]
            held_out = min(QUERIES, len(rows) // 3)
            queries.append(rows[:held_out])
            pools.append(rows[held_out:])
        asked = torch.arange(self.ways).repeat_interleave(torch.tensor([len(q) for q in queries]))
        return Task(
            support=tuple(
                self.table.batch(*self._draw(generator, pools, 1)) for _ in range(self.period)
            ),
            query=self.table.batch(torch.cat(queries), asked),
            index=index,
            name=self._name(classes),
        )

    def _draw(
        self, generator: np.random.Generator, pools: Sequence[Tensor], batches: int
    ) -> tuple[Tensor, Tensor]:
        """Row numbers and labels of mini-batches that have no row in common, one after another."""
        labels = np.concatenate([self._labels(generator) for _ in range(batches)])
        rows = torch.empty(len(labels), dtype=torch.int64)
        for way, pool in enumerate(pools):
            places = np.flatnonzero(labels == way)
            drawn = generator.choice(len(pool), len(places), replace=False)
            rows[torch.from_numpy(places)] = pool[torch.from_numpy(drawn)]
        return rows, torch.from_numpy(labels)

    def _labels(self, generator: np.random.Generator) -> np.ndarray:
        """The labels of a mini-batch: all classes as often, but for what does not come out even."""
        labels = np.arange(self.batch_size) % self.ways
        if self.batch_size % self.ways:  # which of them come once more, or at all, is drawn
            labels = generator.permutation(self.ways)[labels]
        return generator.permutation(labels)

    def _name(self, classes: Sequence[int]) -> str:
        return " ".join(self.table.class_names[label] for label in classes)
