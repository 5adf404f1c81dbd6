"""A small classifier on cached features of a frozen encoder."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_evolve.learners.base import Learner
from lightning_evolve.learners.checks import check_kind, check_sizes
from lightning_evolve.tasks import DataSpec


class Head(Learner):
    """Multilayer perceptron on feature vectors: one hidden layer with ReLU, then ``head``.

    Args:
        spec: what the data looks like; ``shape`` is ``(features,)``.
        hidden_size: units of the hidden layer; 0 leaves only the linear layer ``head``.

    Raises:
        UsageError: if the data is not feature vectors, or ``hidden_size`` is negative.
    """

    def __init__(self, spec: DataSpec, *, hidden_size: int = 256) -> None:
        super().__init__(spec)
        check_kind("Head", "feature vectors", spec)
        (width,) = spec.shape
        self.hidden: nn.Linear | None = None
        self.first_layer = "head"
        if hidden_size != 0:
            check_sizes("Head", hidden_size=hidden_size)
            self.hidden = nn.Linear(width, hidden_size)
            self.first_layer = "hidden"
            width = hidden_size
        self.head = nn.Linear(width, spec.num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Classify feature vectors.

        Args:
            features: float of shape ``[rows, features]``.

        Returns:
            Logits of shape ``[rows, num_classes]``.
        """
        if self.hidden is not None:
            features = self.hidden(features).relu()
        logits: Tensor = self.head(features)
        return logits
