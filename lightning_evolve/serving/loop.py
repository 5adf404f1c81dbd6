"""The loop of the worker: it predicts for a batch while the ones before are being written."""

from __future__ import annotations

import logging
import threading
import time
from queue import Empty, Queue
from typing import Any, NamedTuple

from fastapi import HTTPException
from litserve.loops import LitLoop
from litserve.utils import LitAPIStatus, LoopResponseType, PickleableHTTPException

_log = logging.getLogger(__name__)
_AHEAD = 4  # batches that are predicted and not yet written, at most


class _Done(NamedTuple):
    requests: list[tuple[int, str]]  # the server process that asked, and the request's id
    answers: list[Any]
    entries: list[Any]


class PipelinedLoop(LitLoop):  # type: ignore[misc]
    """Predicts in one thread, and commits and answers in another.

    A commit waits for the disk, about as long as a small model takes for a batch. So the next batch
    is predicted meanwhile, and all batches that wait for the disk share a transaction. An answer
    leaves only after the commit of its prediction.
    """

    def __call__(
        self,
        lit_api: Any,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: dict[int, str],
        callback_runner: Any,
    ) -> None:
        """Serves until the process ends.

        Args:
            lit_api: predicts and writes, see :class:`~lightning_evolve.serving.api.ChampionAPI`.
            device: not used.
            worker_id: not used.
            request_queue: what to predict for.
            transport: takes the answers.
            workers_setup_status: not used.
            callback_runner: not used.
        """
        done: Queue[_Done] = Queue(_AHEAD)
        threading.Thread(
            target=self._answer, args=(lit_api, transport, done), name="answers", daemon=True
        ).start()
        while True:
            batch, late = self.get_batch_requests(lit_api, request_queue, transport)
            if late:
                self._fail(transport, late, HTTPException(504, "waited too long; try again later"))
            if not batch:
                continue
            requests = [(consumer, uid) for consumer, uid, _ in batch]
            try:
                answers, entries = lit_api.predict([texts for _, _, texts in batch])
            except Exception as error:
                _log.exception("a batch of %d requests failed", len(batch))
                self._fail(transport, requests, error)
            else:
                done.put(_Done(requests, answers, entries))

    def get_batch_requests(
        self, lit_api: Any, request_queue: Any, transport: Any
    ) -> tuple[list[tuple[int, str, Any]], list[tuple[int, str]]]:
        """Waits for a request without polling, then collects others as LitServe does.

        Args:
            lit_api: has the size and the timeout of a batch.
            request_queue: the requests.
            transport: not used.

        Returns:
            Requests to answer, and those that waited too long.
        """
        try:
            taken = [request_queue.get(timeout=1)]
        except Empty:
            return [], []
        until = time.monotonic() + lit_api.batch_timeout
        while len(taken) < lit_api.max_batch_size:
            try:
                taken.append(request_queue.get(timeout=max(0, until - time.monotonic())))
            except Empty:  # noqa: PERF203 - it is how a queue says so
                break
        oldest = time.monotonic() - lit_api.request_timeout
        batch = [(consumer, uid, texts) for consumer, uid, came, texts in taken if came >= oldest]
        late = [(consumer, uid) for consumer, uid, came, _ in taken if came < oldest]
        return batch, late

    def _answer(self, lit_api: Any, transport: Any, done: Queue[_Done]) -> None:
        while True:
            batches = [done.get()]
            while not done.empty():  # nobody else takes from it
                batches.append(done.get())
            try:
                entries = [entry for batch in batches for entry in batch.entries]
                if entries:
                    lit_api.write(entries)
            except Exception as error:
                _log.error("predictions could not be written: %s", error)
                for batch in batches:
                    self._fail(transport, batch.requests, error)
                continue
            for batch in batches:
                for (consumer, uid), answer in zip(batch.requests, batch.answers, strict=True):
                    self.put_response(
                        transport, consumer, uid, answer, LitAPIStatus.OK, LoopResponseType.REGULAR
                    )

    def _fail(self, transport: Any, requests: list[tuple[int, str]], error: Exception) -> None:
        for consumer, uid in requests:
            if isinstance(error, HTTPException):
                told = PickleableHTTPException.from_exception(error)
                kind = LoopResponseType.REGULAR
                self.put_response(transport, consumer, uid, told, LitAPIStatus.ERROR, kind)
            else:
                self.put_error_response(transport, consumer, uid, error)
