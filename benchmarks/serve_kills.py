"""Kills serve at random moments under load, and looks for everything that it had acknowledged.

    python benchmarks/serve_kills.py --kills 200

Clients predict and correct without a pause. The server is killed while it starts or while it
answers: its first process, its worker, or all of them. Now and then evolve takes up the corrections
meanwhile, and is killed too. At the end evolve runs undisturbed, and each correction must have
become one record.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import kills

from lightning_evolve.data.topics import topics
from lightning_evolve.evolution.feedback import FeedbackStore
from lightning_evolve.evolution.records import text_key
from lightning_evolve.evolution.redaction import redact
from lightning_evolve.evolution.state import SERVICE, State

_VICTIMS = ("first process", "worker", "all")
_STARTS_WITHIN = 120  # seconds


def ask(port: int, path: str, body: dict[str, str] | None = None) -> tuple[int, Any]:
    """Status and content of an answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        method = "GET" if body is None else "POST"
        connection.request(method, path, None if body is None else json.dumps(body).encode())
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


class Load:
    """Clients that predict and correct without a pause, and what they were told.

    Args:
        port: of the server.
        texts: what they ask, each client and request with a word of its own.
        labels: what they correct every third answer to, in turn.
        name: a word that is in all texts.
        clients: how many.
    """

    def __init__(
        self, port: int, texts: list[str], labels: list[str], name: str = "", clients: int = 4
    ) -> None:
        self.port, self.texts, self.labels, self.name = port, texts, labels, name
        self.predicted: list[dict[str, Any]] = []
        self.corrected: dict[str, tuple[str, str]] = {}  # text and label by id
        self.failed: list[object] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]

    def _run(self, client: int) -> None:
        for number in count():
            if self._over.is_set():
                return
            text = f"{self.texts[number % len(self.texts)]} {self.name} {client} {number}"
            try:
                status, answer = ask(self.port, "/predict", {"text": text})
                if status != 200:
                    self.failed.append(answer)
                    continue
                self.predicted.append(answer)
                if number % 3 == 0:
                    label = self.labels[number % len(self.labels)]
                    body = {"id": answer["id"], "label": label}
                    status, given = ask(self.port, "/feedback", body)
                    if status == 200:
                        self.corrected[answer["id"]] = (text, label)
                    else:
                        self.failed.append(given)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failed.append(error)
                time.sleep(0.02)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def kept(run: Path, load: Load) -> None:
    """Fails where something that was acknowledged is not in the store."""
    store = FeedbackStore(run / SERVICE)
    predictions = {one[0] for one in store._db.execute("SELECT id FROM predictions")}
    corrections = {
        one[0]: (one[1], one[2])
        for one in store._db.execute("SELECT prediction_id, key, label FROM feedback")
    }
    store.close()
    assert {one["id"] for one in load.predicted} <= predictions, "a prediction is lost"
    for identity, (text, label) in load.corrected.items():
        assert corrections[identity] == (text_key(text), label), f"correction of {identity}"


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Starts a command of ours in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_evolve", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def worker(process: int) -> int | None:
    """The child of a server that predicts, None before there is one."""
    children = Path(f"/proc/{process}/task/{process}/children")
    with suppress(OSError):
        for child in map(int, children.read_text().split()):
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"spawn_main" in command:
                return child
    return None


def answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Waits until a server answers; False where it ends before."""
    until = time.monotonic() + _STARTS_WITHIN
    while process.poll() is None:
        assert time.monotonic() < until, "the server does not start"
        with suppress(OSError, http.client.HTTPException):
            if ask(port, "/health")[0] == 200:
                return True
        time.sleep(0.05)
    return False


def ended(process: subprocess.Popen[bytes]) -> None:
    """Has nothing of a server left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def moments(seed: int) -> Iterator[tuple[str, bool, float]]:
    """Whom to kill, whether before it answers, and after how many seconds."""
    draws = random.Random(seed)
    while True:
        early = draws.random() < 0.15
        yield draws.choice(_VICTIMS), early, draws.uniform(0, 4 if early else 2)


def kill(folder: Path, times: int, seed: int = 0, evolve_every: int = 20) -> dict[str, Any]:
    """Kills a server so many times.

    Args:
        folder: an empty one.
        times: how often.
        seed: of the moments.
        evolve_every: kills between two that find evolve at work too, and kill it.

    Returns:
        Figures.
    """
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    config, run = kills.data(folder), folder / "run"
    run.mkdir()
    assert kills.finished(kills.start(run, config), 600) == 0
    with State(run) as state:
        founded = len(state.journal.generations())
        rows = state.journal.execute("SELECT DISTINCT label FROM records WHERE label IS NOT NULL")
        labels = sorted(row[0] for row in rows)[:6]
    texts = [text for text in topics().texts or [] if len(text) < 400 and redact(text)[0] == text]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    killed, evolves = Counter[str](), 0
    predicted, corrected, failed = 0, dict[str, tuple[str, str]](), 0
    for number, (victim, early, seconds) in enumerate(moments(seed)):
        if number == times:
            break
        process = start(["serve", str(run), f"--port={port}"])
        evolving = start(["evolve", f"--run_dir={run}"]) if number % evolve_every == 1 else None
        with Load(port, texts, labels, name=str(number)) as load:
            if not early:
                assert answers(port, process), process.communicate()[1].decode()
            time.sleep(seconds)
            target = worker(process.pid) if victim == "worker" else process.pid
            if victim == "all":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(target or process.pid, signal.SIGKILL)
            killed[victim if target else "first process"] += 1
            process.wait(15)  # without its worker it ends by itself
        ended(process)
        if evolving is not None:
            time.sleep(seconds)
            evolves += evolving.poll() is None
            ended(evolving)
        kept(run, load)
        predicted += len(load.predicted)
        corrected |= load.corrected
        failed += len(load.failed)
    last = start(["evolve", f"--run_dir={run}"])
    _, said = last.communicate()
    assert last.returncode == 0, said.decode()
    records = taken(run, corrected)
    with State(run) as state:
        generations = len(state.journal.generations()) - founded
    return {
        "kills": dict(killed),
        "evolve killed meanwhile": evolves,
        "predictions acknowledged": predicted,
        "corrections acknowledged": len(corrected),
        "requests that met no server": failed,
        "records": records,
        "generations grown of them": generations,
    }


def taken(run: Path, corrected: dict[str, tuple[str, str]]) -> int:
    """Checks that each correction is one record; returns how many records there are."""
    with State(run) as state:
        rows = [
            tuple(row) for row in state.journal.execute("SELECT id, key, part, label FROM records")
        ]
    kills.each_once(row[:3] for row in rows)
    known = Counter((key, label) for _, key, _, label in rows)
    for text, label in corrected.values():
        assert known[text_key(text), label] == 1, f"{known[text_key(text), label]} of {text!r}"
    return len(rows)


def main() -> None:
    """Prints the figures; fails where something was lost or taken twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, value in kill(Path(folder), args.kills, args.seed).items():
            print(f"{name}: {value}", flush=True)
    print("nothing that was acknowledged is lost, and each correction is one record")


if __name__ == "__main__":
    main()
