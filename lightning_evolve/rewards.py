"""Rewards: the score of an adapted learner on the query set, higher is better."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


class Reward:
    """A score of logits against labels; an estimator climbs its expectation.

    Attributes:
        differentiable: whether the reward has a gradient by the logits that is worth following.
    """

    differentiable: bool = False

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scores predictions.

        Args:
            logits: ``[rows, num_classes]``.
            labels: ``[rows]``, int64.

        Returns:
            The mean score over the rows, a scalar.
        """
        raise NotImplementedError


class NegativeLoss(Reward):
    """Minus the cross-entropy in nats: the reward with a gradient.

    Example:
        >>> import torch
        >>> NegativeLoss()(torch.zeros(1, 2), torch.tensor([0]))
        tensor(-0.6931)
    """

    differentiable = True

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Reward`."""
        return -functional.cross_entropy(logits, labels)


class Accuracy(Reward):
    """The share of rows whose largest logit is the label's: a reward without a gradient.

    Example:
        >>> import torch
        >>> Accuracy()(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
        tensor(0.5000)
    """

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Reward`."""
        return (logits.argmax(dim=-1) == labels).to(logits.dtype).mean()
