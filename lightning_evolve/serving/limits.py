"""What is refused before it is looked at: who may ask, how often, and how much at once."""

from __future__ import annotations

import hmac
import json
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightning_evolve.serving.metrics import Metrics

MAX_BODY = 1_000_000  # bytes
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CLIENTS = 10_000


class Refusal(NamedTuple):
    """A request that is not answered.

    Args:
        status: of HTTP.
        reason: for the metrics.
        message: for the client.
        headers: of the answer.
    """

    status: int
    reason: str
    message: str
    headers: dict[str, str] = {}  # noqa: RUF012


class TokenBucket:
    """A rate for each client: a bucket of tokens that fills steadily, and a request takes one.

    Args:
        rate: tokens a second.
        burst: what a bucket holds.

    References:
        J. Turner, "New directions in communications (or which way to the information age?)", IEEE
        Communications Magazine 24(10), 1986.

    >>> bucket = TokenBucket(rate=2.0, burst=1)
    >>> bucket.wait("a", now=0.0), bucket.wait("a", now=0.0), bucket.wait("b", now=0.0)
    (0.0, 0.5, 0.0)
    >>> bucket.wait("a", now=0.5)
    0.0
    """

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str, now: float) -> float:
        """Takes a token, if there is one.

        Args:
            client: whose.
            now: seconds of a clock that never goes back.

        Returns:
            0 if one was taken, else the seconds until there is one.
        """
        tokens, since = self._buckets.pop(client, (self.burst, now))
        tokens = min(self.burst, tokens + self.rate * (now - since))
        taken = tokens >= 1
        self._buckets[client] = (tokens - taken, now)
        if len(self._buckets) > _CLIENTS:  # the one that has been away longest begins anew
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1 - tokens) / self.rate


class Limits:
    """Middleware that refuses what it may not pass on, with a sentence in JSON.

    Args:
        app: what to pass on to.
        token: that a client must show, None where none is asked for. Without one, pages of other
            sites are kept out: a browser would send what they ask for to this machine.
        rate: requests a second of each client, None for any.
        metrics: count what is refused.
    """

    def __init__(
        self, app: ASGIApp, *, token: str | None, rate: float | None, metrics: Metrics
    ) -> None:
        self.app = app
        self.metrics = metrics
        self._bearer = None if token is None else f"Bearer {token}".encode()
        self._bucket = None if rate is None else TokenBucket(rate, burst=max(1.0, 2 * rate))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, self._measured(receive), send)
            return
        self.metrics.refused(refusal.reason)
        answer = error_response(refusal.status, refusal.message, refusal.headers)
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        if self._bucket is not None:
            client = scope["client"][0] if scope["client"] else ""
            wait = self._bucket.wait(client, time.monotonic())
            if wait:
                after = {"Retry-After": str(math.ceil(wait))}
                return Refusal(429, "rate", f"too many requests; wait {wait:.1f} seconds", after)
        if self._bearer is None:
            if not _from_this_machine(headers):
                return Refusal(403, "origin", "asked for by another site's page, or under a name "
                               "that is not this machine's; use http://127.0.0.1")  # fmt: skip
        elif scope["path"] != "/" and not hmac.compare_digest(
            headers.get("authorization", "").encode(), self._bearer
        ):
            ask = {"WWW-Authenticate": "Bearer"}
            return Refusal(401, "token", "send the header Authorization: Bearer TOKEN", ask)
        if int(headers.get("content-length", "0")) > MAX_BODY:
            return Refusal(413, "size", _TOO_LARGE)
        return None

    def _measured(self, receive: Receive) -> Receive:
        size = 0

        async def measured() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                self.metrics.refused("size")
                raise HTTPException(413, _TOO_LARGE)
            return message

        return measured


_TOO_LARGE = f"the body has more than {MAX_BODY:,} bytes; send fewer texts at once"


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """The form of all answers that are errors.

    Args:
        status: of HTTP.
        message: one sentence.
        headers: of the answer.
    """
    content = json.dumps({"error": message})
    return Response(content, status, headers=headers, media_type="application/json")


def _from_this_machine(headers: Headers) -> bool:
    host = headers.get("host", "")
    origin = headers.get("origin")
    try:
        # A name that resolves to this machine is no proof: another site's may (DNS rebinding).
        known = urlsplit(f"//{host}").hostname in _LOOPBACK
        return known and (origin is None or urlsplit(origin).netloc == host)
    except ValueError:  # no address at all
        return False
