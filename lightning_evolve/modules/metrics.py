"""The metrics that both modules log: accuracy, macro F1, precision, recall and loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)
from torchmetrics.functional.classification import (
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

LOGGED = (
    *(f"train/{name}" for name in ("loss", "accuracy")),
    *(f"val/{name}" for name in ("reward", "accuracy", "macro_f1", "precision", "recall", "loss")),
)
"""What both modules log in ``fit``, which is what a search may choose by."""


class Mean(MeanMetric):
    """A mean in the precision of its sum.

    Moved to a device, torchmetrics rounds to 32 bits whatever comes in, in 64-true too.
    """

    @property
    def dtype(self) -> torch.dtype:
        """The precision that values are added in."""
        return self.mean_value.dtype


class PooledMetrics(MetricCollection):
    """Metrics over all rows of a split: ordinary data, where classes mean the same throughout.

    Args:
        num_classes: width of the logits.
        prefix: put before each name, such as ``"val/"``.
    """

    def __init__(self, num_classes: int, prefix: str) -> None:
        super().__init__(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "macro_f1": MulticlassF1Score(num_classes, average="macro"),
                "precision": MulticlassPrecision(num_classes, average="macro"),
                "recall": MulticlassRecall(num_classes, average="macro"),
                "loss": _CrossEntropy(),
            },
            prefix=prefix,
            compute_groups=False,
        )


class PerTaskMetrics(MetricCollection):
    """The mean over tasks of each task's metrics: class 0 of one task is not class 0 of another.

    Args:
        num_classes: width of the logits.
        prefix: put before each name, such as ``"val/"``.
    """

    def __init__(self, num_classes: int, prefix: str) -> None:
        self.num_classes = num_classes
        names = ("accuracy", "macro_f1", "precision", "recall", "loss")
        super().__init__({name: Mean() for name in names}, prefix=prefix, compute_groups=False)

    def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Adds a task.

        Args:
            logits: of its query set, ``[rows, num_classes]``.
            labels: ``[rows]``, int64.
        """
        predicted, n = logits.argmax(dim=-1), self.num_classes
        self["accuracy"].update((predicted == labels).to(logits.dtype).mean())
        self["macro_f1"].update(multiclass_f1_score(predicted, labels, n, average="macro"))
        self["precision"].update(multiclass_precision(predicted, labels, n, average="macro"))
        self["recall"].update(multiclass_recall(predicted, labels, n, average="macro"))
        self["loss"].update(functional.cross_entropy(logits, labels))


class _CrossEntropy(Mean):
    """Mean cross-entropy over rows, in nats."""

    def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        super().update(functional.cross_entropy(logits, labels, reduction="none"))
