"""Few-shot episodes: N ways, K shots, Q queries, as a pure function of (seed, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_evolve.data.table import Table
from lightning_evolve.tasks import Task


@dataclass(frozen=True)
class Episodes:
    """The episodes of one split, each drawn when it is asked for (Vinyals et al. 2016).

    Args:
        table: the encoded rows.
        rows: row numbers by class, of the classes to draw from.
        ways: classes of an episode.
        shots: support rows of each class.
        queries: query rows of each class.
        seed: numbers that tell this sequence of episodes from all others.
    """

    table: Table
    rows: dict[int, Tensor]
    ways: int
    shots: int
    queries: int
    seed: Sequence[int]

    def task(self, index: int) -> Task:
        """Draw an episode.

        Args:
            index: its number in the sequence; the same number is the same episode.

        Returns:
            A task with one support batch of ``ways * shots`` rows and a query batch of
            ``ways * queries`` other rows; its classes are labelled in an order drawn for it.
        """
        generator = np.random.default_rng([*self.seed, index])
        classes = generator.choice(list(self.rows), self.ways, replace=False).tolist()
        drawn = [
            self.rows[label][
                torch.from_numpy(
                    generator.choice(
                        len(self.rows[label]), self.shots + self.queries, replace=False
                    )
                )
            ]
            for label in classes
        ]
        ways = torch.arange(self.ways)
        support = torch.cat([rows[: self.shots] for rows in drawn])
        query = torch.cat([rows[self.shots :] for rows in drawn])
        return Task(
            support=(self.table.batch(support, ways.repeat_interleave(self.shots)),),
            query=self.table.batch(query, ways.repeat_interleave(self.queries)),
            index=index,
            name=" ".join(self.table.class_names[label] for label in classes),
        )
