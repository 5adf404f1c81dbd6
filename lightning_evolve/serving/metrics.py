"""What Prometheus may know, and the middleware that measures it."""

from __future__ import annotations

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one server.

    Args:
        paths: those that are counted by name; all others are ``other``.
    """

    def __init__(self, paths: list[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._paths = frozenset(paths)
        self._requests = Counter(
            "lightning_evolve_requests",
            "Requests that were answered.",
            ["endpoint", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "lightning_evolve_request_seconds",
            "Seconds until a request was answered.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._predictions = Counter(
            "lightning_evolve_predictions",
            "Texts that a class was predicted for.",
            ["label"],
            registry=self.registry,
        )
        self._feedback = Counter(
            "lightning_evolve_feedback",
            "Corrections and confirmations that were taken.",
            ["status"],
            registry=self.registry,
        )
        self._refused = Counter(
            "lightning_evolve_rejected",
            "Requests that were refused, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._champion = Gauge(
            "lightning_evolve_champion_generation",
            "Number of the generation in use.",
            registry=self.registry,
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer.

        Args:
            path: of the request.
            status: of the answer.
            seconds: that it took.
        """
        endpoint = path if path in self._paths else "other"
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def predicted(self, labels: tuple[str, ...], champion: int) -> None:
        """Counts predictions.

        Args:
            labels: the predicted classes.
            champion: number of the generation in use.
        """
        for label in labels:
            self._predictions.labels(label).inc()
        self._champion.set(champion)

    def corrected(self, status: str) -> None:
        """Counts a piece of feedback.

        Args:
            status: what became of it.
        """
        self._feedback.labels(status).inc()

    def refused(self, reason: str) -> None:
        """Counts a refusal.

        Args:
            reason: in a word.
        """
        self._refused.labels(reason).inc()

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class Measured:
    """Middleware that counts answers and takes their time.

    Args:
        app: what answers.
        metrics: where they are counted.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and watches the answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500  # where it fails without an answer

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            self.metrics.answered(scope["path"], status, time.perf_counter() - began)
