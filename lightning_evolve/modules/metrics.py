"""The metrics that both modules log: accuracy, macro F1, precision, recall and loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)


def classification_metrics(num_classes: int) -> MetricCollection:
    """Returns accuracy over rows, and F1, precision and recall averaged over classes.

    Args:
        num_classes: width of the logits.
    """
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "macro_f1": MulticlassF1Score(num_classes, average="macro"),
            "precision": MulticlassPrecision(num_classes, average="macro"),
            "recall": MulticlassRecall(num_classes, average="macro"),
        }
    )


class PooledMetrics(MetricCollection):
    """Metrics over all rows of a split: ordinary data, where classes mean the same throughout.

    Args:
        num_classes: width of the logits.
        prefix: put before each name, such as ``"val/"``.
    """

    def __init__(self, num_classes: int, prefix: str) -> None:
        metrics: dict[str, Metric | MetricCollection] = dict(classification_metrics(num_classes))
        super().__init__({**metrics, "loss": _CrossEntropy()}, prefix=prefix, compute_groups=False)


class PerTaskMetrics(MetricCollection):
    """The mean over tasks of each task's metrics: class 0 of one task is not class 0 of another.

    Args:
        num_classes: width of the logits.
        prefix: put before each name, such as ``"val/"``.
    """

    def __init__(self, num_classes: int, prefix: str) -> None:
        names = ("accuracy", "macro_f1", "precision", "recall", "loss")
        super().__init__(
            {name: MeanMetric() for name in names}, prefix=prefix, compute_groups=False
        )
        self.within = classification_metrics(num_classes)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a task.

        Args:
            logits: of its query set, ``[rows, num_classes]``.
            labels: ``[rows]``, int64.
        """
        self.within.reset()
        self.within.update(logits, labels)
        values = {**self.within.compute(), "loss": functional.cross_entropy(logits, labels)}
        for name, value in values.items():
            self[name].update(value)


class _CrossEntropy(MeanMetric):
    """Mean cross-entropy over rows, in nats."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        super().update(functional.cross_entropy(logits, labels, reduction="none"))
