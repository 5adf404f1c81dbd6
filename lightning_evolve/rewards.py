"""Rewards: the score of an adapted learner on the query set, higher is better."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_evolve.errors import UsageError

if TYPE_CHECKING:
    import torchmetrics  # takes seconds to import, which only those who name a metric need


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
        >>> NegativeLoss()(torch.zeros(1, 2), torch.tensor([0]))
        tensor(-0.6931)
    """

    differentiable = True

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Reward`."""
        return -functional.cross_entropy(logits, labels)


class RelativeLoss(Reward):
    r"""Minus the logarithm of the cross-entropy: a loss smaller by a tenth counts everywhere alike.

    .. math:: R = - \log(L + \mathrm{floor})

    It is what several families of tasks can be averaged by. Their losses differ in scale, and so
    do the differences that an update rule makes to them; in the sum of the losses the families
    with the largest ones would decide alone. A run that diverges costs a few units here, not a few
    hundred, so that it does not drown the others either.

    Args:
        floor: in nats; a loss well below it counts as zero, so that a task that is solved does
            not go on to be.

    Raises:
        UsageError: if ``floor`` is not positive.

    Example:
        >>> RelativeLoss()(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.2969)
    """

    differentiable = True

    def __init__(self, floor: float = 0.05) -> None:
        if not (math.isfinite(floor) and floor > 0):
            raise UsageError(f"reward: floor is {floor}; give a positive loss in nats such as 0.05")
        self.floor = floor

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Reward`."""
        return -(functional.cross_entropy(logits, labels) + self.floor).log()


class Accuracy(Reward):
    """The share of rows whose largest logit is the label's: a reward without a gradient.

    Example:
        >>> Accuracy()(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
        tensor(0.5000)
    """

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Reward`."""
        return (logits.argmax(dim=-1) == labels).to(logits.dtype).mean()


class MacroF1(Reward):
    """The F1 score of each class, averaged over the classes that occur: without a gradient.

    Example:
        >>> MacroF1()(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
        tensor(0.3333)
    """

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Reward`."""
        from torchmetrics.functional.classification import multiclass_f1_score

        score = multiclass_f1_score(logits, labels, logits.shape[-1], average="macro")
        return score.to(logits.dtype)


class Metric(Reward):
    """Any metric of torchmetrics that takes logits and labels, such as Cohen's kappa.

    Args:
        metric: such as ``{class_path: torchmetrics.classification.MulticlassCohenKappa,
            init_args: {num_classes: 5}}``. One of which lower is better, such as a calibration
            error, counts as its negative.

    Raises:
        UsageError: if the metric is neither better when higher nor when lower.

    Example:
        >>> from torchmetrics.classification import MulticlassHammingDistance
        >>> reward = Metric(MulticlassHammingDistance(num_classes=2, average="micro"))
        >>> reward(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
        tensor(-0.5000)
    """

    def __init__(self, metric: torchmetrics.Metric) -> None:
        self.metric = metric
        if getattr(metric, "higher_is_better", None) is None:
            raise UsageError(
                f"reward: {type(metric).__name__} is neither better when it is higher nor when it "
                "is lower; name a metric that is a score, such as MulticlassCohenKappa"
            )
        # A task is scored where it is played: other processes are playing other tasks.
        metric.sync_on_compute = False

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Reward`."""
        metric = self.metric.to(logits.device)
        metric.reset()
        try:
            metric.update(logits.detach(), labels)
            value = metric.compute()
        except (ValueError, RuntimeError) as error:  # torchmetrics' own, where shapes do not fit
            if not logits.isfinite().all():
                return logits.new_tensor(math.nan)
            classes, said = logits.shape[-1], " ".join(str(error).split())
            raise UsageError(
                f"reward: {type(metric).__name__} does not take logits of {classes} classes "
                f"({said[:120]}); name a metric of classification for {classes} of them"
            ) from error
        score = _scalar(value, logits, type(metric).__name__)
        return score if metric.higher_is_better else -score


class Function(Reward):
    """Any function of logits and labels, such as the profit of the decisions that follow.

    Args:
        function: of logits ``[rows, num_classes]`` and labels ``[rows]``, int64; its result is one
            number, higher is better. In YAML its import path, such as ``mypackage.rewards.profit``.

    Example:
        >>> reward = Function(lambda logits, labels: float(len(labels)))
        >>> reward(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        tensor(3.)
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        self.function = function

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Reward`."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return _scalar(self.function(logits.detach(), labels), logits, name)


def _scalar(value: Any, logits: Tensor, name: str) -> Tensor:
    """One finite number as a scalar like the logits; NaN for a learner that has diverged."""
    try:
        score = torch.as_tensor(value, dtype=logits.dtype, device=logits.device).detach()
    except (TypeError, ValueError, RuntimeError):
        score = logits.new_empty(0)
    if score.numel() != 1 or not torch.isfinite(score).all():
        if not logits.isfinite().all():
            return logits.new_tensor(math.nan)
        tensor = isinstance(value, Tensor) and score.numel() != 1
        shown = f"a tensor of shape {tuple(score.shape)}" if tensor else repr(value)
        raise UsageError(
            f"reward: {name} gave {shown}, and a reward is one finite number; "
            "name another, or average and bound it in a function of your own"
        )
    return score.reshape(())
