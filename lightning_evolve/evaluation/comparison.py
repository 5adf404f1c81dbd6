"""The table on held-out tasks: our update, tuned rivals, and the no-learning floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor

from lightning_evolve.evaluation.curves import Curves, adaptation_curves
from lightning_evolve.evaluation.floor import nearest_centroid
from lightning_evolve.evaluation.rivals import RIVALS, name_of, tuned_rivals
from lightning_evolve.evaluation.statistics import NOTHING, Interval, interval, steps_to_target
from lightning_evolve.learners.base import Learner
from lightning_evolve.meta_learners import MetaLearner, MetaLearnerFactory
from lightning_evolve.tasks import Task, Tensors


class Comparison(NamedTuple):
    """What was measured.

    Args:
        rows: of ``results.json``, by method: ``accuracy``, ``macro_f1``, ``loss`` after the last
            step, ``steps_to_target``, each with mean and 95% interval; ours is ``evolved``.
        curves: query loss and accuracy against steps by method, for the plot.
    """

    rows: list[dict[str, Any]]
    curves: dict[str, Curves]


def compare_on_tasks(
    learner: Learner,
    evolved: MetaLearner,
    theta: Tensors,
    *,
    alpha: float,
    steps: int,
    measured: Sequence[int],
    tuning: Sequence[Task],
    test: Sequence[Task],
    floor_features: Callable[[Tensor], Any],
    rivals: Sequence[str] = RIVALS,
    rival_theta: Tensors | None = None,
    rival_learner: Learner | None = None,
    points: int = 7,
    persistent: bool = False,
    damping: float = 0.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Measures the learned update and its rivals on the same held-out tasks.

    The rivals' rates are tuned on meta-training tasks for the same number of steps and the same
    objective that phi was learned for, the mean query loss at the measured steps.

    Args:
        learner: the base classifier.
        evolved: the meta-learned rule.
        theta: where adaptation begins.
        alpha: our inner step size.
        steps: inner steps K.
        measured: after which steps the objective is taken.
        tuning: meta-training tasks.
        test: held-out tasks.
        floor_features: raw features of source rows.
        rivals: which of :data:`RIVALS` to tune and run.
        rival_theta: where the rivals begin, if not at ``theta`` (which may be learned).
        rival_learner: what the rivals adapt, if what does not adapt in ``learner`` is learned too.
        points: size of the tuning grids.
        persistent: whether theta carries on from task to task.
        damping: strength of our proximal term; the rivals have none.
        progress: told in words what is being done.
    """
    start = rival_theta or theta

    def curves(
        rule: MetaLearner,
        begin: Tensors,
        rate: float,
        tasks: Sequence[Task],
        at: Any,
        adapted: Learner = rival_learner or learner,
        pull: float = 0.0,
    ) -> Curves:
        return adaptation_curves(
            adapted,
            rule,
            begin,
            tasks,
            alpha=rate,
            steps=steps,
            measured=at,
            persistent=persistent,
            damping=pull,
        )

    def tuning_loss(rule: MetaLearnerFactory, rate: float) -> float:
        progress(f"tuning the rivals: {name_of(rule)} at {rate:.3g}")
        got = curves(rule(start), start, rate, tuning, measured)
        return float(got.loss[:, [got.steps.index(k) for k in measured]].mean())

    chosen = tuned_rivals(tuning_loss, learner, start, alpha, rivals, points)
    every = evenly(steps)
    progress("evolved on held-out tasks")
    found = {"evolved": curves(evolved, theta, alpha, test, every, learner, damping)}
    settings: dict[str, dict[str, float]] = {"evolved": {"rate": alpha}}
    for name, rival in chosen.items():
        progress(f"{name} on held-out tasks")
        found[name] = curves(rival.rule(start), start, rival.alpha, test, every)
        settings[name] = rival.setting
    rows = rows_of(found, settings)
    rows.append(floor_row(test, floor_features))
    return Comparison(rows, found)


def evenly(steps: int, most: int = 50) -> tuple[int, ...]:
    """Returns at most about ``most`` evenly spaced steps from 0 to ``steps``, both included.

    Example:
        >>> evenly(4)
        (0, 1, 2, 3, 4)
    """
    stride = max(1, steps // most)
    return tuple(sorted({*range(0, steps + 1, stride), steps}))


def rows_of(
    curves: Mapping[str, Curves], settings: Mapping[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """Turns curves into rows of ``results.json``.

    Args:
        curves: by method.
        settings: the tuned numbers, by method.
    """
    some = next(iter(curves.values()))
    to_target: dict[str, Interval] = dict.fromkeys(curves, NOTHING)
    if "adam" in curves:
        to_target = steps_to_target({n: c.loss for n, c in curves.items()}, some.steps)
    return [
        {
            "method": name,
            "accuracy": interval(c.accuracy[:, -1]),
            "macro_f1": interval(c.macro_f1),
            "loss": interval(c.loss[:, -1]),
            "steps_to_target": to_target[name],
            "setting": settings[name],
        }
        for name, c in curves.items()
    ]


def floor_row(tasks: Sequence[Task], features: Callable[[Tensor], Any]) -> dict[str, Any]:
    """The nearest centroid of raw features on the same tasks.

    Args:
        tasks: held-out tasks.
        features: raw features of source rows.
    """
    accuracy, macro_f1 = [], []
    for task in tasks:
        rows = np.concatenate([b.rows.cpu().numpy() for b in task.support])
        labels = np.concatenate([b.labels.cpu().numpy() for b in task.support])
        truth = task.query.labels.cpu().numpy()
        predicted = nearest_centroid(
            features(torch.as_tensor(rows)), labels, features(task.query.rows.cpu())
        )
        accuracy.append(float((predicted == truth).mean()))
        macro_f1.append(float(f1_score(truth, predicted, average="macro")))
    return {
        "method": "floor",
        "accuracy": interval(accuracy),
        "macro_f1": interval(macro_f1),
        "loss": NOTHING,
        "steps_to_target": NOTHING,
        "setting": {},
    }
