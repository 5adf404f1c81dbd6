"""How a learner gets on with held-out tasks under an update rule, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_f1_score

from lightning_evolve.inner_loop import Adapted, Pull, detached, inner_steps, logits
from lightning_evolve.learners.base import Learner
from lightning_evolve.meta_learners.base import MetaLearner
from lightning_evolve.tasks import Task, Tensors


class Curves(NamedTuple):
    """Query metrics against inner steps.

    Args:
        steps: inner steps taken at each measurement, 0 first.
        loss: cross-entropy in nats, ``[tasks, measurements]``.
        accuracy: ``[tasks, measurements]``.
        macro_f1: after the last step, ``[tasks]``.
    """

    steps: tuple[int, ...]
    loss: np.ndarray
    accuracy: np.ndarray
    macro_f1: np.ndarray


@torch.no_grad()
def adaptation_curves(
    learner: Learner,
    meta_learner: MetaLearner,
    theta: Tensors,
    tasks: Sequence[Task],
    *,
    alpha: float,
    steps: int,
    measured: Sequence[int],
    persistent: bool = False,
    damping: float = 0.0,
) -> Curves:
    """Adapts to each task and scores its query set along the way.

    Args:
        learner: the base classifier.
        meta_learner: the update rule, learned or not.
        theta: where every task (or, if persistent, the first one) begins.
        tasks: what to adapt to.
        alpha: inner step size.
        steps: inner steps a task.
        measured: the steps after which the query set is scored, 0 and ``steps`` among them.
        persistent: whether theta and the rule's state carry on from task to task.
        damping: strength of a proximal term that pulls theta back to where a task begins.
    """
    measured = tuple(sorted({0, *measured, steps}))
    losses, accuracies, scores = [], [], []
    start = Adapted(detached(theta), meta_learner.init(detached(theta)))
    for task in tasks:
        adapted, labels = start, task.query.labels
        loss, accuracy = [], []
        pull = Pull(damping, start.theta) if damping else None
        walk = inner_steps(
            learner, meta_learner, start, task, alpha=alpha, steps=range(steps), pull=pull
        )
        for k in range(steps + 1):
            if k > 0:
                adapted = next(walk)
            if k in measured:
                out = logits(learner, adapted.theta, task.query)
                loss.append(functional.cross_entropy(out, labels))
                accuracy.append((out.argmax(dim=-1) == labels).to(out.dtype).mean())
        scores.append(multiclass_f1_score(out, labels, num_classes=out.shape[-1], average="macro"))
        losses.append(torch.stack(loss))
        accuracies.append(torch.stack(accuracy))
        if persistent:
            start = adapted
    return Curves(
        measured,
        torch.stack(losses).double().cpu().numpy(),
        torch.stack(accuracies).double().cpu().numpy(),
        torch.stack(scores).double().cpu().numpy(),
    )
