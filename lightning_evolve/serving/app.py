"""The service: LitServe's server around the worker, and the endpoints beside ``/predict``."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from litserve import LitServer
from litserve.server import RegularRequestHandler
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lightning_evolve import __version__
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.feedback import (
    BadFeedbackError,
    FeedbackStore,
    Given,
    UnknownPredictionError,
)
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.state import JOURNAL, SERVICE
from lightning_evolve.serving.api import Answer, ChampionAPI, Texts
from lightning_evolve.serving.bodies import BodyError, FeedbackBody, PredictBody, parse
from lightning_evolve.serving.lifetime import end_children, end_forks_with_me, stop_once
from lightning_evolve.serving.limits import Limits, error_response
from lightning_evolve.serving.metrics import Measured, Metrics
from lightning_evolve.serving.state import state

_log = logging.getLogger(__name__)
_HEALTHY_WITHIN = 10.0  # seconds


@dataclass(frozen=True)
class Settings:
    """How a run is served.

    Args:
        run: directory of the run.
        host: address to listen on.
        port: port to listen on.
        token: that clients must show, None for none.
        rate: requests a second of each client, None for any.
        keep_days: days after which predictions are deleted, None for never.
        max_batch_size: most requests that are predicted for together.
        batch_timeout: seconds that the first request of a batch waits for others.
        new_classes: whether a correction may name a class that the champion does not know.
        redact: whether e-mail addresses, phone and card numbers leave the texts that are kept.
        trust: weight of the corrections of a source, by its name.
    """

    run: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    rate: float | None = None
    keep_days: float | None = None
    max_batch_size: int = 32
    batch_timeout: float = 0.002
    new_classes: bool = False
    redact: bool = True
    trust: dict[str, float] = field(default_factory=dict)


class _Server(LitServer):  # type: ignore[misc]
    """LitServe's server, which says when it is ready."""

    ready = ""

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        async with super().lifespan(app):
            print(self.ready, flush=True)
            yield


class Service:
    """Endpoints, in the process that speaks HTTP.

    Args:
        settings: how to serve.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        api = ChampionAPI(
            settings.run,
            redact=settings.redact,
            keep_days=settings.keep_days,
            max_batch_size=settings.max_batch_size,
            batch_timeout=settings.batch_timeout,
        )
        self.metrics = Metrics(list(self._endpoints()))
        limits = {"token": settings.token, "rate": settings.rate, "metrics": self.metrics}
        self.server = _Server(
            api,
            accelerator="cpu",
            disable_openapi_url=True,
            middlewares=[(Limits, limits), (Measured, {"metrics": self.metrics})],
        )
        shown = "localhost" if settings.host == "127.0.0.1" else settings.host
        self.server.ready = f"serving {settings.run} on http://{shown}:{settings.port}"
        self._worker = RegularRequestHandler(api, self.server)
        app = self.server.app
        # Only what is documented is served: LitServe's own endpoints know no token and no limits.
        app.router.routes[:] = [
            Route(path, endpoint, methods=[method])
            for path, (method, endpoint) in self._endpoints().items()
        ]
        app.add_exception_handler(StarletteHTTPException, _told)
        app.add_exception_handler(BodyError, _told)
        app.add_exception_handler(UsageError, _told)
        app.add_exception_handler(Exception, _told)

    def run(self) -> int:
        """Serves until the process is told to stop, and answers what it has taken by then.

        Returns:
            The exit code: 0, 1 if one of its processes has died, 2 if the user has been told why.
        """
        end_forks_with_me()
        code = stop_once(self._bereaved)
        try:
            self.server.run(
                host=self.settings.host,
                port=self.settings.port,
                log_level="warning",
                access_log=False,
                generate_client_file=False,
            )
        except KeyboardInterrupt:
            pass  # while the model was being loaded
        finally:
            end_children()
        return code()

    def _bereaved(self) -> None:
        """One process is dead: nobody will answer what the others have taken."""
        self.server.uvicorn_graceful_timeout = 1

    def _endpoints(self) -> dict[str, tuple[str, Any]]:
        return {
            "/predict": ("POST", self.predict),
            "/feedback": ("POST", self.feedback),
            "/health": ("GET", self.health),
            "/metrics": ("GET", self.prometheus),
            "/state": ("GET", self.state),
            "/": ("GET", self.page),
        }

    # SQLite's connections belong to the process and the thread that made them, and this object
    # is made before LitServe forks.
    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "store")

    @cached_property
    def _store(self) -> FeedbackStore:
        return FeedbackStore(self.settings.run / SERVICE, trust=self.settings.trust)

    @cached_property
    def _journal(self) -> Journal:
        return Journal(self.settings.run / JOURNAL)

    @cached_property
    def _page(self) -> bytes:
        return files("lightning_evolve.serving").joinpath("page.html").read_bytes()

    async def predict(self, request: Request) -> Response:
        """``POST /predict``: classes of a text or of several."""
        body = parse(PredictBody, await request.body())
        answer = await self._ask([body.text] if body.text is not None else body.texts)
        # An object for one text, without the list around it.
        content = answer.content if body.text is None else answer.content[1:-1]
        return Response(content, media_type="application/json")

    async def feedback(self, request: Request) -> Response:
        """``POST /feedback``: the right class of a text that was predicted for."""
        body = parse(FeedbackBody, await request.body())
        classes = None if self.settings.new_classes else (await self._status())["classes"]
        given = await self._run(self._give, body, classes)
        self.metrics.corrected(given.status)
        return _json({"id": body.id, "label": body.label, "status": given.status})

    async def health(self, _: Request) -> Response:
        """``GET /health``: whether the worker answers, with which champion."""
        status = await self._status()
        del status["classes"]
        return _json({"ready": True, **status, "version": __version__})

    async def prometheus(self, _: Request) -> Response:
        """``GET /metrics``, in Prometheus' text format."""
        await self._status()
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def state(self, _: Request) -> Response:
        """``GET /state``: what the page shows."""
        return _json({**await self._status(), **await self._run(self._shown)})

    async def page(self, _: Request) -> Response:
        """``GET /``: the page for people."""
        return Response(self._page, media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)

    async def _ask(self, texts: Texts) -> Answer:
        answer: Answer = await self._worker.handle_request(texts, None)
        self.metrics.predicted(answer.labels, answer.champion)
        return answer

    async def _status(self) -> dict[str, Any]:
        try:
            answer = await asyncio.wait_for(self._ask(None), _HEALTHY_WITHIN)
        except asyncio.TimeoutError:
            raise HTTPException(503, "the worker does not answer") from None
        status: dict[str, Any] = json.loads(answer.content)
        return status

    async def _run(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _give(self, body: FeedbackBody, classes: list[str] | None) -> Given:
        self._store.classes = classes
        try:
            return self._store.give(body.id, body.label, body.source)
        except UnknownPredictionError as error:
            raise HTTPException(404, str(error)) from None
        except BadFeedbackError as error:
            raise HTTPException(422, str(error)) from None

    def _shown(self) -> dict[str, Any]:
        return {
            **state(self._journal),
            "predictions": self._store.count("predictions"),
            "corrections": self._store.count("feedback"),
        }


_PAGE_HEADERS = {
    # Nothing from elsewhere, and no other site may show it in a frame.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content), media_type="application/json")


async def _told(request: Request, error: Exception) -> Response:
    """Every error has one form."""
    if isinstance(error, StarletteHTTPException):
        message = {
            HTTPStatus.NOT_FOUND.phrase: f"there is no {request.url.path}",
            HTTPStatus.METHOD_NOT_ALLOWED.phrase: f"{request.url.path} knows no {request.method}",
        }.get(error.detail, error.detail)
        return error_response(error.status_code, message, error.headers)
    if isinstance(error, BodyError):
        return error_response(422, str(error))
    if isinstance(error, UsageError):
        return error_response(507, str(error))
    return error_response(500, "something failed here; the server's log has the details")
