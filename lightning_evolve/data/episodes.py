"""Few-shot episodes: N ways, K shots, Q queries, as a pure function of (seed, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_evolve.data.distortions import distorted
from lightning_evolve.data.table import Table
from lightning_evolve.tasks import Batch, Task


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
        distortion: how far images are distorted, as in
            :func:`lightning_evolve.data.distortions.distorted`; 0 for not at all.
        names: number of the row with each class's name, ``[classes]``, which is a support row
            beside the shots; None for none.
    """

    table: Table
    rows: dict[int, Tensor]
    ways: int
    shots: int
    queries: int
    seed: Sequence[int]
    distortion: float = 0.0
    names: Tensor | None = None

    def task(self, index: int) -> Task:
        """Draw an episode.

        Args:
            index: its number in the sequence; the same number is the same episode.

        Returns:
            A task with one support batch of ``ways * shots`` rows, and ``ways`` more where there
            are names, and a query batch of ``ways * queries`` other rows; its classes are labelled
            in an order drawn for it.
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
        chosen = [rows[: self.shots] for rows in drawn]
        if self.names is not None:
            chosen = [
                torch.cat([self.names[label, None], rows])
                for label, rows in zip(classes, chosen, strict=True)
            ]
        support = torch.cat(chosen)
        query = torch.cat([rows[self.shots :] for rows in drawn])
        return Task(
            support=(self._batch(support, ways.repeat_interleave(len(chosen[0])), generator),),
            query=self._batch(query, ways.repeat_interleave(self.queries), generator),
            index=index,
            name=" ".join(self.table.class_names[label] for label in classes),
        )

    def _batch(self, rows: Tensor, labels: Tensor, generator: np.random.Generator) -> Batch:
        batch = self.table.batch(rows, labels)
        if not self.distortion:
            return batch
        drawn = torch.Generator().manual_seed(int(generator.integers(2**63)))
        images = distorted(batch.inputs["images"], self.distortion, drawn)
        return batch._replace(inputs={**batch.inputs, "images": images})
