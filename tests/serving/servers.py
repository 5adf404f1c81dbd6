"""Real servers in processes of their own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning_evolve.cli.serve import TOKEN

STARTS_WITHIN = 120  # seconds, on a machine that has other work


class Answer(NamedTuple):
    status: int
    content: Any
    headers: http.client.HTTPMessage


class Server:
    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """An answer; bodies that are not bytes are sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            connection.request(
                method, path, body, {n.replace("_", "-"): v for n, v in headers.items()}
            )
            got = connection.getresponse()
            content = got.read()
            if got.headers.get_content_type() == "application/json":
                content = json.loads(content)
            return Answer(got.status, content, got.headers)
        finally:
            connection.close()

    def predict(self, text: str) -> dict[str, Any]:
        got = self.ask("POST", "/predict", {"text": text})
        assert got.status == 200, got
        return got.content


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(
    run: Path, *options: str, port: int | None = None, token: str | None = None
) -> tuple[subprocess.Popen[str], int]:
    port = port or free_port()
    environment = {name: value for name, value in os.environ.items() if name != TOKEN}
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_evolve", "serve", str(run), f"--port={port}", *options],
        env={**environment, **({TOKEN: token} if token else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    return process, port


@contextmanager
def serving(run: Path, *options: str, **how: Any) -> Iterator[Server]:
    process, port = launch(run, *options, **how)
    server = Server(process, port)
    try:
        wait_for(lambda: process.poll() is not None or answers(server))
        assert process.poll() is None, process.communicate()[0]
        yield server
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def answers(server: Server) -> bool:
    with suppress(OSError):
        return server.ask("GET", "/").status == 200
    return False


def wait_for(condition: Any, seconds: float = STARTS_WITHIN) -> None:
    """Waits until it holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.1)
