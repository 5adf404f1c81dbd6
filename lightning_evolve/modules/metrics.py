"""The metrics that both modules log: accuracy, macro F1, precision, recall and loss."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, MetricCollection, SumMetric
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
    """A mean in the precision of its sum, of all that comes in.

    Moved to a device, torchmetrics rounds to 32 bits whatever comes in, in 64-true too. And it
    leaves out NaN, so that a learner that diverged on half of the tasks would look fine.
    """

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

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


class FamilyMetrics(nn.Module):
    """The metrics of several families of tasks: of each, and their mean over the families.

    Args:
        families: number of classes of a family's tasks, by its name.
        prefix: put before each name: ``val/loss`` is the mean, ``val/topics/loss`` that of a
            family; of each family there is the loss, the accuracy and the reward.
    """

    def __init__(self, families: dict[str, int], prefix: str) -> None:
        super().__init__()
        self.families, self.prefix = tuple(families), prefix
        self.scores = nn.ModuleList(PerTaskMetrics(n, "") for n in families.values())
        self.rewards = nn.ModuleList(Mean() for _ in families)
        self.counts = nn.ModuleList(SumMetric() for _ in families)

    def update(self, family: str, logits: Tensor, labels: Tensor, reward: Tensor) -> None:
        """Adds a task.

        Args:
            family: its family.
            logits: of its query set, ``[rows, num_classes]``.
            labels: ``[rows]``, int64.
            reward: the episode's reward.
        """
        place = self.families.index(family)
        self.scores[place].update(logits, labels)  # type: ignore[operator]
        self.rewards[place].update(reward)  # type: ignore[operator]
        self.counts[place].update(1)  # type: ignore[operator]

    def compute(self) -> dict[str, Tensor]:
        """Returns the values by name, gathered over processes."""
        found: dict[str, dict[str, Tensor]] = {}
        with warnings.catch_warnings():
            # A process may have had no task of a family, or a shortened evaluation none at all.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            parts = zip(self.families, self.scores, self.rewards, self.counts, strict=True)
            for family, scores, rewards, count in parts:
                values = {**scores.compute(), "reward": rewards.compute()}  # type: ignore[operator]
                if count.compute() > 0:  # type: ignore[operator]
                    found[family] = values
        values = {
            f"{self.prefix}{name}": torch.stack([v[name] for v in found.values()]).mean()
            for name in next(iter(found.values()), {})
        }
        for family, of_family in found.items():
            for name in ("loss", "accuracy", "reward"):
                values[f"{self.prefix}{family}/{name}"] = of_family[name]
        return values

    def reset(self) -> None:
        """Forgets all tasks."""
        for metric in (*self.scores, *self.rewards, *self.counts):
            metric.reset()


class _CrossEntropy(Mean):
    """Mean cross-entropy over rows, in nats."""

    def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        super().update(functional.cross_entropy(logits, labels, reduction="none"))
