"""The table on ordinary data: a theta that evolved along the training set, against tuned rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from lightning_evolve.evaluation.floor import nearest_centroid
from lightning_evolve.evaluation.rivals import RIVALS, name_of, tuned_rivals
from lightning_evolve.evaluation.statistics import NOTHING, TOLERANCE, Interval, interval
from lightning_evolve.inner_loop import Adapted, detached, inner_steps, logits
from lightning_evolve.learners.base import Learner
from lightning_evolve.meta_learners import MetaLearnerFactory
from lightning_evolve.tasks import Batch, Task, Tensors

# Rows that go through the learner at once, a bound on memory.
_CHUNK = 256


class Point(NamedTuple):
    """The validation split after some steps.

    Args:
        step: mini-batches taken.
        loss: mean cross-entropy in nats.
        accuracy: share of rows.
    """

    step: int
    loss: float
    accuracy: float


class Trained(NamedTuple):
    """A training run: its validation curve and its best theta.

    Args:
        curve: in the order of the steps.
        theta: where the validation loss was lowest.
    """

    curve: list[Point]
    theta: Tensors

    def best_loss(self) -> float:
        """Returns the lowest validation loss."""
        return min(point.loss for point in self.curve)


def train(
    learner: Learner,
    rule: MetaLearnerFactory,
    theta: Tensors,
    tasks: Sequence[Task],
    validation: Batch,
    *,
    alpha: float,
    measured: Sequence[int],
) -> Trained:
    """Trains by a rule without phi on all rows of a sequence of mini-batch pairs.

    Support and query of a pair are one mini-batch here, so after each step a rival has learned
    from every row that either the learned theta or its phi has seen.

    Args:
        learner: the base classifier.
        rule: the update rule.
        theta: where training begins.
        tasks: mini-batch pairs in order.
        validation: rows to choose the best theta on.
        alpha: rate.
        measured: numbers of steps after which the validation split is scored.
    """
    meta_learner = rule(theta)
    start = Adapted(detached(theta), meta_learner.init(detached(theta)))
    merged = Task(tuple(joined([*t.support, t.query]) for t in tasks), validation)
    curve: list[Point] = []
    best: Tensors = start.theta
    walk = inner_steps(learner, meta_learner, start, merged, alpha=alpha, steps=range(len(tasks)))
    learner.train()  # as ours was
    for step, adapted in enumerate(walk, start=1):
        if step in measured or step == len(tasks):
            losses, predicted = score(learner, adapted.theta, validation)
            accuracy = float((predicted == validation.labels.cpu().numpy()).mean())
            curve.append(Point(step, float(losses.mean()), accuracy))
            if not np.isfinite(losses).all():
                break  # It has diverged; more steps only cost time.
            if curve[-1].loss <= min(point.loss for point in curve):
                best = adapted.theta
    learner.eval()
    return Trained(curve, best)


def merged(tasks: Sequence[Task]) -> Task:
    """Returns the mini-batch pairs of one outer step as one pair.

    Args:
        tasks: the pairs, at least one.
    """
    *support, query = (batch for task in tasks for batch in (*task.support, task.query))
    return tasks[0]._replace(support=tuple(support), query=query)


@torch.no_grad()
def score(learner: Learner, theta: Tensors, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cross-entropy in nats and the predicted class of each row.

    Args:
        learner: the base classifier.
        theta: its adapting parameters.
        batch: rows to score, however many.
    """
    losses, predicted = [], []
    training = learner.training
    learner.eval()
    for first in range(0, len(batch.labels), _CHUNK):
        rows = slice(first, first + _CHUNK)
        part = trimmed(
            Batch(
                {k: v[rows] for k, v in batch.inputs.items()}, batch.labels[rows], batch.rows[rows]
            )
        )
        out = logits(learner, theta, part)
        losses.append(functional.cross_entropy(out, part.labels, reduction="none").double())
        predicted.append(out.argmax(dim=-1))
    learner.train(training)
    return torch.cat(losses).cpu().numpy(), torch.cat(predicted).cpu().numpy()


def trimmed(batch: Batch) -> Batch:
    """Cuts padding columns that no row of a text batch uses."""
    mask = batch.inputs.get("attention_mask")
    if mask is None:
        return batch
    longest = int(mask.sum(dim=1).max())
    return batch._replace(inputs={k: v[:, :longest] for k, v in batch.inputs.items()})


def joined(batches: Sequence[Batch]) -> Batch:
    """Puts batches together; text is padded with 0 to the longest.

    Args:
        batches: batches with the same inputs.

    Example:
        >>> def text(*ids):
        ...     inputs = {"input_ids": torch.tensor([ids])}
        ...     return Batch(inputs, torch.tensor([0]), torch.tensor([0]))
        >>> joined([text(5, 6), text(7)]).inputs["input_ids"]
        tensor([[5, 6],
                [7, 0]])
    """

    def cat(name: str) -> torch.Tensor:
        parts = [batch.inputs[name] for batch in batches]
        if parts[0].dim() == 2 and name in ("input_ids", "attention_mask", "weights"):
            longest = max(part.shape[1] for part in parts)
            parts = [functional.pad(part, (0, longest - part.shape[1])) for part in parts]
        return torch.cat(parts)

    return Batch(
        {name: cat(name) for name in batches[0].inputs},
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.rows for batch in batches]),
    )


def compare_on_rows(
    learner: Learner,
    evolved: Trained,
    initial: Tensors,
    tasks: Sequence[Task],
    validation: Batch,
    test: Batch,
    *,
    alpha: float,
    floor_features: Callable[[torch.Tensor], Any],
    rivals: Sequence[str] = RIVALS,
    points: int = 7,
    name: str = "evolved",
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[dict[str, Any]], dict[str, list[Point]]]:
    """Measures a theta that was trained along ordinary data against tuned rivals on the test split.

    Each rival starts from the same theta, takes the same mini-batches, and has its rate and its
    best step chosen on the validation split, on which ours were chosen too.

    Args:
        learner: the base classifier.
        evolved: our run.
        initial: the theta that it began from.
        tasks: the mini-batch pairs that it took, in order.
        validation: rows that choices are made on.
        test: rows that nothing was chosen on.
        alpha: our inner step size.
        floor_features: raw features of source rows.
        rivals: which rules to tune and run.
        points: size of the tuning grids.
        name: what our row is called.
        progress: told in words what is being done.

    Returns:
        Rows of ``results.json``, and validation curves by method.
    """
    measured = [point.step for point in evolved.curve]
    runs: dict[str, Trained] = {name: evolved}
    settings: dict[str, dict[str, float]] = {name: {"rate": alpha}}
    best: dict[str, tuple[MetaLearnerFactory, float, Trained]] = {}

    @cache  # the groups' second grid begins where the first one ended
    def loss(rule: MetaLearnerFactory, rate: float) -> float:
        progress(f"tuning the rivals: {name_of(rule)} at {rate:.3g}")
        run = train(learner, rule, initial, tasks, validation, alpha=rate, measured=measured)
        # The run that was tuned on is the run that counts: no second one to wait for. Of each
        # method the best alone, as a run has a theta, which may be large.
        method = f"{name_of(rule)} {type(rule).__name__}"  # Adam is a class, its groups a partial
        if method not in best or run.best_loss() < best[method][2].best_loss():
            best[method] = (rule, rate, run)
        return run.best_loss()

    for rival_name, rival in tuned_rivals(loss, learner, initial, alpha, rivals, points).items():
        # Where two rates are equally good, the one kept may be the other.
        kept = (run for rule, rate, run in best.values() if (rule, rate) == rival[:2])
        runs[rival_name] = next(kept, None) or train(
            learner, rival.rule, initial, tasks, validation, alpha=rival.alpha, measured=measured
        )
        settings[rival_name] = rival.setting
    target = runs["adam"].best_loss() if "adam" in runs else None
    rows = []
    truth = test.labels.cpu().numpy()
    for method, run in runs.items():
        progress(f"{method} on the test split")
        losses, predicted = score(learner, run.theta, test)
        rows.append(
            {
                "method": method,
                "accuracy": interval(predicted == truth),
                "macro_f1": _macro_f1(truth, predicted),
                "loss": interval(losses),
                "steps_to_target": _reached(run.curve, target),
                "setting": settings[method],
            }
        )
    support = joined([b for t in tasks for b in (*t.support, t.query)])
    # A row counts once in the floor, however many epochs there were.
    _, first = np.unique(support.rows.cpu().numpy(), return_index=True)
    predicted = nearest_centroid(
        floor_features(support.rows.cpu()[first]),
        support.labels.cpu().numpy()[first],
        floor_features(test.rows.cpu()),
    )
    rows.append(
        {
            "method": "floor",
            "accuracy": interval(predicted == truth),
            "macro_f1": _macro_f1(truth, predicted),
            "loss": NOTHING,
            "steps_to_target": NOTHING,
            "setting": {},
        }
    )
    return rows, {method: run.curve for method, run in runs.items()}


def _reached(curve: Sequence[Point], target: float | None) -> Interval:
    """The first measured step at the target; a single run has no interval."""
    steps = [p.step for p in curve if target is not None and p.loss <= target * (1 + TOLERANCE)]
    return {"mean": float(steps[0]), "low": None, "high": None} if steps else NOTHING


def _macro_f1(truth: np.ndarray, predicted: np.ndarray, resamples: int = 200) -> Interval:
    """Macro F1 over all rows, with a bootstrap interval over rows.

    Rows of the same class and prediction are alike, so that counts of them are resampled: the same
    distribution, in a time that does not grow with the rows.
    """
    classes, numbers = np.unique([truth, predicted], return_inverse=True)
    right, said = numbers.reshape(2, -1)
    pairs, counts = np.unique(right * len(classes) + said, return_counts=True)
    right, said = np.divmod(pairs, len(classes))

    def score(counts: np.ndarray) -> float:
        def of(kind: np.ndarray, where: np.ndarray) -> np.ndarray:
            return np.bincount(kind[where], counts[where], minlength=len(classes))

        everywhere = np.full(len(counts), True)
        hits, seen = of(right, right == said), of(right, everywhere) + of(said, everywhere)
        # As scikit-learn has it, over the classes that occur.
        return float((2 * hits[seen > 0] / seen[seen > 0]).mean())

    draws = np.random.default_rng(0).multinomial(len(truth), counts / len(truth), resamples)
    low, high = np.quantile([score(draw) for draw in draws], [0.025, 0.975])
    return {"mean": score(counts), "low": float(low), "high": float(high)}
