"""What the worker of LitServe does: predict for a batch of requests, and log the predictions."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import HTTPException
from litserve import LitAPI

from lightning_evolve.data.cleaning import normalise
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.feedback import FeedbackStore, Prediction
from lightning_evolve.evolution.redaction import redact
from lightning_evolve.evolution.state import SERVICE
from lightning_evolve.serving.lifetime import end_with_parent
from lightning_evolve.serving.loop import PipelinedLoop

if TYPE_CHECKING:
    from lightning_evolve.serving.champion import Champion

_log = logging.getLogger(__name__)

Texts = list[str] | None
"""The texts of a request; None where it asks for the state of the worker."""

TOP = 5  # probabilities in an answer
_ROWS = 32  # texts that go through the model at once
_FORGETS_EVERY = 60.0  # seconds


class Answer(NamedTuple):
    """What the worker tells of a request.

    Args:
        champion: number of the generation that answered.
        labels: the predicted class of each text.
        content: JSON, an object for each text in a list, or the state of the worker.
    """

    champion: int
    labels: tuple[str, ...]
    content: bytes


class ChampionAPI(LitAPI):  # type: ignore[misc]
    """Predicts with the champion of a run.

    Args:
        run: its directory.
        redact: whether e-mail addresses, phone and card numbers leave the texts that are kept.
        keep_days: days after which predictions are deleted; None for never.
        max_batch_size: most requests that are predicted for together.
        batch_timeout: seconds that the first request of a batch waits for others.
    """

    def __init__(
        self,
        run: Path,
        *,
        redact: bool,
        keep_days: float | None,
        max_batch_size: int,
        batch_timeout: float,
    ) -> None:
        super().__init__(
            max_batch_size=max_batch_size, batch_timeout=batch_timeout, loop=PipelinedLoop()
        )
        self.run, self.redact, self.keep_days = run, redact, keep_days

    def setup(self, device: str) -> None:
        """Loads the champion, in the worker's process.

        Args:
            device: ``"cpu"``.

        Raises:
            SystemExit: it cannot be loaded, which has been told in one line.
        """
        end_with_parent()
        # Ctrl-C reaches all processes. This one ends last, when all requests are answered.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Models take seconds to import, and only this process needs them.
        from lightning_evolve.serving.champion import CurrentChampion

        try:
            self.champion = CurrentChampion(self.run)
            self.store = FeedbackStore(self.run / SERVICE, redact=self.redact)
        except UsageError as error:
            print(f"lightning-evolve: error: {error}", file=sys.stderr)
            sys.exit(2)
        if self.keep_days is not None:
            threading.Thread(
                target=self._forget, args=(self.keep_days,), name="forget", daemon=True
            ).start()

    def _forget(self, days: float) -> None:
        while True:
            try:
                self.store.forget(time.time() - 86400 * days)
            except UsageError as error:
                _log.error("old predictions could not be deleted: %s", error)
            time.sleep(_FORGETS_EVERY)

    def predict(self, x: Sequence[Texts], **_: Any) -> tuple[list[Answer], list[Prediction]]:
        """Predicts for a batch of requests.

        Args:
            x: the texts of each request.

        Returns:
            An answer for each request, and the predictions to :meth:`write` before they leave.
        """
        in_use = self.champion.in_use
        texts = list(chain.from_iterable(request or () for request in x))
        found, entries = self._predicted(texts, in_use) if texts else ([], [])
        answers, first = [], 0
        for request in x:
            if request is None:
                content: Any = {
                    "champion": in_use.generation,
                    "classes": in_use.model.classes,
                    "problem": self.champion.problem,
                }
                labels: tuple[str, ...] = ()
            else:
                content = found[first : first + len(request)]
                labels = tuple(one["label"] for one in content)
                first += len(request)
            answers.append(Answer(in_use.generation, labels, json.dumps(content).encode()))
        return answers, entries

    def _read(self, text: str) -> str:
        """A text as those that the model has learned from and was judged on are."""
        clean = normalise(text)
        return redact(clean).text if self.redact else clean

    def _predicted(
        self, texts: list[str], in_use: Champion
    ) -> tuple[list[dict[str, Any]], list[Prediction]]:
        classes, now = in_use.model.classes, time.time()
        answers, entries = [], []
        for first in range(0, len(texts), _ROWS):
            part = texts[first : first + _ROWS]
            read = [self._read(text) for text in part]
            rows = in_use.model.predict(read).probabilities.tolist()
            for text, row in zip(part, rows, strict=True):
                shares = {name: round(p, 6) for name, p in zip(classes, row, strict=True)}
                top = sorted(shares, key=shares.__getitem__, reverse=True)[:TOP]
                label, confidence = top[0], shares[top[0]]
                entry = Prediction(
                    uuid.uuid4().hex, text, label, confidence, shares, in_use.generation, now
                )
                entries.append(entry)
                answers.append(
                    {
                        "id": entry.id,
                        "label": label,
                        "confidence": confidence,
                        "probabilities": {name: shares[name] for name in top},
                        "champion": in_use.generation,
                    }
                )
        return answers, entries

    def write(self, entries: list[Prediction]) -> None:
        """Makes predictions durable, in one transaction.

        Args:
            entries: as from :meth:`predict`.

        Raises:
            HTTPException: 507, they cannot be written.
        """
        try:
            self.store.log_predictions(entries)
        except UsageError as error:
            raise HTTPException(507, str(error)) from error
