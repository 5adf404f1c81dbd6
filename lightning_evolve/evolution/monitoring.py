"""Monitoring of predictions in use: alarms that name what moved.

With labels, detectors watch the stream of errors for a rise. Without, each full window of
predictions is compared with the reference in three ways: the accuracy that its confidences promise,
its embeddings, and the shares of its predicted classes.

    errors -> ADWIN, Page-Hinkley, DDM                  -> "degradation"
    window -> confidence-based performance estimation   -> "estimated_accuracy"
           -> Kolmogorov-Smirnov or MMD                 -> "embedding"
           -> chi-square                                -> "classes"

Rows count in the order in which they are observed, whatever their time. Time only stamps alarms,
and never runs back: a row that is older than an earlier one is stamped with the latest time seen.

The windows take rows to be independent, and so do the detectors: where neighbours are alike, as
when one user asks a hundred times, alarms come more often than ``significance`` says.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.detectors import (
    ADWIN,
    Detector,
    Windows,
    cbpe,
    class_drift,
    embedding_drift,
)
from lightning_evolve.evolution.detectors.windows import Compare, most

Kind = Literal["degradation", "estimated_accuracy", "embedding", "classes"]

HISTORY = 2000  # labelled rows that are kept to say what rose, and from where
UNKNOWN = -1  # a row's label where there is none


@dataclass(frozen=True)
class Alarm:
    """Something has moved.

    Args:
        time: the latest time that had been seen.
        kind: of what moved: the error by labels, the estimated accuracy, embeddings, or the shares
            of predicted classes.
        detector: which method saw it.
        before: error, accuracy, mean or share before; of embeddings and classes of that which
            moved most.
        after: the same now.
        moved: classes or dimensions that moved most, most first.
        message: a sentence that says all that.
    """

    time: float
    kind: Kind
    detector: str
    before: float
    after: float
    moved: tuple[str, ...]
    message: str


class Monitor:
    """Watches a champion's predictions.

    Args:
        detectors: of a rise in the error, one of a kind; ADWIN if not given. Each alarms by
            itself.
        window: rows that are compared at once where there are no labels.
        significance: probability that rows which do not change ever raise an alarm of a window, for
            each reference; the three comparisons share it. The detectors have settings of their
            own.
        embedding: test of embeddings, ``ks`` or ``mmd``.

    Raises:
        UsageError: for a setting out of range.
    """

    def __init__(
        self,
        detectors: Sequence[Detector] | None = None,
        window: int = 500,
        significance: float = 0.01,
        embedding: Literal["ks", "mmd"] = "ks",
    ) -> None:
        found = [ADWIN()] if detectors is None else detectors
        self.detectors = {type(detector).__name__: detector for detector in found}
        if len(self.detectors) < len(found):
            names = ", ".join(type(detector).__name__ for detector in found)
            raise UsageError(f"detectors are {names}: give each of them once")
        if window < 20:
            raise UsageError(f"window is {window}: give 20 rows or more")
        if not 0 < significance < 1:
            raise UsageError(f"significance is {significance}: give a probability from 0 to 1")
        if embedding not in embedding_drift.COMPARE:
            raise UsageError(f"embedding is {embedding!r}: give ks or mmd")
        comparisons: dict[Kind, tuple[str, Compare]] = {
            "estimated_accuracy": ("CBPE", cbpe.compare),
            "embedding": (embedding.upper(), embedding_drift.COMPARE[embedding]),
            "classes": ("chi-square", class_drift.compare),
        }
        self.windows = {
            kind: Windows(method, compare, window, significance / len(comparisons))
            for kind, (method, compare) in comparisons.items()
        }
        self.time = -math.inf
        self._begin()

    def _begin(self) -> None:
        # Of each labelled row whether it was an error, and the name of its class.
        self.history: deque[tuple[bool, str]] = deque(maxlen=HISTORY)
        self.rows = dict.fromkeys(self.detectors, 0)  # since each detector started anew

    def set_reference(
        self,
        probabilities: np.ndarray,
        features: np.ndarray | None,
        labels: np.ndarray,
        classes: tuple[str, ...],
    ) -> None:
        """Start anew with a champion: what it does on its tune data is what is expected of it.

        Its errors there, where labels are known, are the beginning of every detector's stream, so
        that a champion which is worse in use from the first row on is noticed.

        Args:
            probabilities: calibrated, ``[rows, classes]``; of no rows, the first window in use
                becomes the reference. Of fewer rows than a window, less is noticed.
            features: ``[rows, d]``; without them the first window's.
            labels: ``[rows]``, -1 where unknown.
            classes: names, at least those of the columns.

        Raises:
            UsageError: for arrays that do not fit together; nothing changes.
        """
        rows = _checked(probabilities, features, labels, classes)
        self._begin()
        for detector in self.detectors.values():
            detector.reset()
        self._errors(probabilities.argmax(axis=1), labels, classes)
        for kind, windows in self.windows.items():
            windows.set_reference(rows[kind])

    def observe(
        self,
        time: float,
        probabilities: np.ndarray,
        features: np.ndarray | None,
        labels: np.ndarray,
        classes: tuple[str, ...],
    ) -> list[Alarm]:
        """Take a batch of predictions, each of which is observed once.

        A label that arrives after its prediction goes to ``observe_labels``.

        Args:
            time: seconds.
            probabilities: calibrated, ``[rows, classes]``, in the order of their rows.
            features: the embeddings, ``[rows, d]``; None if there are none.
            labels: ``[rows]``, -1 where unknown.
            classes: names of the columns; further names are classes that the champion cannot
                predict yet. They may be more than the last time.

        Returns:
            The alarms, in the order of ``Kind``.

        Raises:
            UsageError: for a time or arrays that make no sense; nothing has been taken then.
        """
        rows = _checked(probabilities, features, labels, classes)
        reference = self.windows["embedding"].reference or self.windows["embedding"].current
        if rows["embedding"] and reference and len(reference[0]) != len(rows["embedding"][0]):
            raise UsageError(
                f"features have {len(rows['embedding'][0])} dimensions and had "
                f"{len(reference[0])}: set the reference of another encoder first"
            )
        alarms = self.observe_labels(time, probabilities.argmax(axis=1), labels, classes)
        for kind, windows in self.windows.items():
            alarms += [
                Alarm(self.time, kind, windows.method, *shift[1:])
                for shift in windows.update(rows[kind])
            ]
        return alarms

    def observe_labels(
        self, time: float, predicted: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
    ) -> list[Alarm]:
        """Take labels of earlier predictions, such as corrections.

        If users correct what is wrong and leave what is right, these are errors alone, and their
        rate says nothing; it takes labels of rows that were chosen without a look at them.

        Args:
            time: seconds.
            predicted: number of the predicted class, ``[rows]``.
            labels: ``[rows]``; rows with -1 are passed over.
            classes: names by number.

        Returns:
            Alarms of degradation.

        Raises:
            UsageError: for a time or arrays that make no sense; nothing has been taken then.
        """
        if not math.isfinite(time):
            raise UsageError(f"time is {time}: give seconds")
        _check_numbers("predicted", predicted, len(predicted), 0, classes)
        _check_numbers("labels", labels, len(predicted), UNKNOWN, classes)
        self.time = max(self.time, float(time))
        return self._errors(predicted, labels, classes)

    def _errors(
        self, predicted: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
    ) -> list[Alarm]:
        alarms = []
        for guess, label in zip(predicted.tolist(), labels.tolist(), strict=True):
            if label == UNKNOWN:
                continue
            self.history.append((guess != label, classes[label]))
            for name, detector in self.detectors.items():
                self.rows[name] += 1
                if detector.update(float(guess != label)):
                    alarms.append(self._degradation(name))
                    self.rows[name] = 0
        return alarms

    def _degradation(self, detector: str) -> Alarm:
        rows = list(self.history)[-self.rows[detector] :]
        start = change_point([error for error, _ in rows])
        parts = rows[:start], rows[start:]
        before, after = (sum(error for error, _ in part) / len(part) for part in parts)
        old, new = (Counter(label for error, label in part if error) for part in parts)
        rises = {c: new[c] / len(parts[1]) - old[c] / len(parts[0]) for c in sorted(new)}
        moved = most(list(rises), list(rises.values()))
        where = f"; most of the new errors on class {moved[0]!r}" if moved else ""
        message = f"error rose from {before:.2f} to {after:.2f} ({detector}){where}"
        return Alarm(self.time, "degradation", detector, before, after, moved, message)

    def state_dict(self) -> dict[str, Any]:
        """All that has been seen and is kept, for JSON.

        Most of it are features: up to 8 MB for two windows of 500 rows of 384 numbers. So save it
        when rows have come, and not oftener.
        """
        return {
            "time": self.time if math.isfinite(self.time) else None,
            "history": [list(row) for row in self.history],
            "rows": dict(self.rows),
            "detectors": {name: d.state_dict() for name, d in self.detectors.items()},
            "windows": {kind: windows.state_dict() for kind, windows in self.windows.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict`` was taken.

        Raises:
            UsageError: if it is from a monitor with other detectors.
        """
        if set(state["detectors"]) != set(self.detectors):
            raise UsageError(
                f"the monitor was saved with the detectors {', '.join(state['detectors'])} and has "
                f"{', '.join(self.detectors)}: give the same"
            )
        self._begin()
        self.time = -math.inf if state["time"] is None else state["time"]
        self.history.extend((error, label) for error, label in state["history"])
        self.rows = dict(state["rows"])
        for name, detector in self.detectors.items():
            detector.load_state_dict(state["detectors"][name])
        for kind, windows in self.windows.items():
            windows.load_state_dict(state["windows"][kind])


def change_point(errors: Sequence[bool]) -> int:
    """Where a rise most likely began: the split of the greatest CUSUM statistic.

        argmax over s of (mean of x_s.. - mean of x_..s) sqrt(s (n - s) / n)

    Source: Page, Biometrika 1955.

    Args:
        errors: two or more.

    Returns:
        The number of the first row after the change, at least 1.

    >>> change_point([False, True, False, False, True, True, True])
    4
    """
    x, n = np.asarray(errors, dtype=float), len(errors)
    s = np.arange(1, n)
    sums = x.cumsum()
    rise = (sums[-1] - sums[:-1]) / (n - s) - sums[:-1] / s
    return int((rise * np.sqrt(s * (n - s) / n)).argmax()) + 1


def _checked(
    probabilities: np.ndarray,
    features: np.ndarray | None,
    labels: np.ndarray,
    classes: tuple[str, ...],
) -> dict[Kind, list[Any]]:
    """The rows of each comparison, of arrays that fit together."""
    if probabilities.ndim != 2 or not 1 <= probabilities.shape[1] <= len(classes):
        raise UsageError(
            f"probabilities have the shape {list(probabilities.shape)} and there are "
            f"{len(classes)} classes: give [rows, classes] and a name for each column"
        )
    if len(set(classes)) < len(classes):
        twice = next(name for name, count in Counter(classes).items() if count > 1)
        raise UsageError(f"the class {twice!r} is there twice: give each class once")
    sums = probabilities.sum(axis=1)
    if not ((probabilities >= 0).all() and (np.abs(sums - 1) < 1e-2).all()):
        raise UsageError("probabilities are negative, NaN or do not sum to 1: give calibrated ones")
    _check_numbers("labels", labels, len(probabilities), UNKNOWN, classes)
    if features is not None and (
        features.ndim != 2
        or features.shape[0] != len(probabilities)
        or not features.shape[1]
        or not np.isfinite(features).all()
    ):
        raise UsageError(
            f"features have the shape {list(features.shape)} for {len(probabilities)} rows, or are "
            "not finite: give [rows, d] numbers"
        )
    predicted = [classes[number] for number in probabilities.argmax(axis=1)]
    confidences = np.minimum(probabilities.max(axis=1), 1).tolist()
    return {
        "estimated_accuracy": [list(row) for row in zip(confidences, predicted, strict=True)],
        "embedding": [] if features is None else features.tolist(),
        "classes": predicted,
    }


def _check_numbers(
    name: str, numbers: np.ndarray, rows: int, least: int, classes: tuple[str, ...]
) -> None:
    if numbers.shape != (rows,) or not np.issubdtype(numbers.dtype, np.integer):
        raise UsageError(
            f"{name} have the shape {list(numbers.shape)} and type {numbers.dtype} for {rows} "
            "rows: give one integer a row"
        )
    if rows and not least <= numbers.min() <= numbers.max() < len(classes):
        wrong = next(n for n in numbers.tolist() if not least <= n < len(classes))
        raise UsageError(f"{name}: {wrong} is none of {len(classes)} classes: give its number")
