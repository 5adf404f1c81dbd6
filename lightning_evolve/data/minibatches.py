"""Mini-batches of ordinary training data as tasks: adapt on one, score on the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lightning_evolve.data.table import Table
from lightning_evolve.tasks import Task


@dataclass(frozen=True)
class MiniBatches:
    """Each mini-batch in turn to adapt on, the one after it to score on.

    So a row is adapted on at most once an epoch, and scored on just before that, when theta has
    not yet learned from it (prequential, Dawid 1984). Each epoch has an order of its own; what is
    left over at the end of one is left over in that order only.

    Args:
        table: the encoded rows.
        rows: numbers of the training rows.
        batch_size: rows of a mini-batch.
        per_epoch: tasks of an epoch, at most one less than there are mini-batches.
        seed: numbers that tell this sequence of tasks from all others.
    """

    table: Table
    rows: Tensor
    batch_size: int
    per_epoch: int
    seed: tuple[int, ...]

    def task(self, index: int) -> Task:
        """The pair of a global index.

        Args:
            index: its number in the sequence; the same number is the same pair.

        Returns:
            A task with one support batch and a query batch of ``batch_size`` rows each.
        """
        epoch, place = divmod(index, self.per_epoch)
        order = _permutation(len(self.rows), (*self.seed, epoch))
        first = self.batch_size * place
        support, query = self.rows[order[first : first + 2 * self.batch_size]].chunk(2)
        return Task((self.table.batch(support),), self.table.batch(query), index)


@lru_cache(maxsize=2)  # an epoch asks for the same order again and again
def _permutation(length: int, seed: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).permutation(length))
