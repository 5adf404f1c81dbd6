"""The table: all encoded rows of a source, of which batches and tasks are selections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_evolve.tasks import Batch, Tensors


@dataclass(frozen=True)
class Table:
    """Encoded rows with their classes.

    Args:
        inputs: keyword inputs of the learner, each of shape ``[rows, ...]``; small integers and
            booleans are kept as such and widened when they are selected.
        labels: class of each row, int64 of shape ``[rows]``, -1 where it is not known.
        class_names: names of the classes.
    """

    inputs: Tensors
    labels: Tensor
    class_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row of dense inputs or weights; empty for other text."""
        for name in ("features", "images", "weights"):
            if name in self.inputs:
                return tuple(self.inputs[name].shape[1:])
        return ()

    def batch(self, rows: Tensor, labels: Tensor | None = None) -> Batch:
        """Select rows; texts are cut to the longest of them.

        Args:
            rows: row numbers, int64 of shape ``[rows]``.
            labels: what to label them with, int64 of shape ``[rows]``; their classes by default.
        """
        inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}
        used = inputs.get("attention_mask", inputs.get("weights"))
        if used is not None:
            longest = int((used != 0).sum(1).max()) if len(rows) else 0
            inputs = {name: _widened(tensor[:, :longest]) for name, tensor in inputs.items()}
        return Batch(inputs, self.labels[rows] if labels is None else labels, rows)

    def by_class(self, rows: Tensor) -> dict[int, Tensor]:
        """The numbers of given rows, grouped by class, in the order of the classes' numbers."""
        labels, order = self.labels[rows].sort(stable=True)
        classes, counts = torch.unique_consecutive(labels, return_counts=True)
        parts = torch.split(rows[order], counts.tolist())
        return dict(zip(classes.tolist(), parts, strict=True))


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.long()
