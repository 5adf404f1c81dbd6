"""Serving a run beside the same model in a bare LitServe server, under load by wrk.

python benchmarks/serving.py runs/evolution --seconds 10 --rounds 6

Both servers take requests of one text, with the same sizes and timeouts of batches. They are
loaded in turn, and the one that is not is stopped meanwhile. Ours also keeps every prediction on
disk before it answers, and in its rounds the champion changes: two promotions and a rollback. The
run that is given is copied, not changed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import litserve
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lightning_evolve.evaluation.statistics import interval
from lightning_evolve.evolution.artifacts import Artifacts
from lightning_evolve.evolution.journal import Journal

BATCH, WAIT = 32, 0.002

LOAD = """
local bodies = {}
for line in io.lines(os.getenv("BODIES")) do bodies[#bodies + 1] = line end
local next = 0
request = function()
  next = next % #bodies + 1
  return wrk.format("POST", "/predict", {["Content-Type"] = "application/json"}, bodies[next])
end
done = function(summary, latency)
  local e = summary.errors
  local form = '\\n{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": %d}\\n'
  io.write(string.format(form,
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.timeout + e.status))
end
"""


class Bare(litserve.LitAPI):
    """The champion's model, and nothing else."""

    def __init__(self, run: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT)
        self.run = run

    def setup(self, device: str) -> None:
        """Loads the champion."""
        from lightning_evolve.evolution.model import Model

        champion = Journal(self.run / "journal.sqlite").champion()
        self.model = Model.load(Artifacts(self.run / "artifacts"), champion.model)

    def decode_request(self, request):
        """Takes the text."""
        return request["text"]

    def predict(self, x):
        """Predicts for a batch of texts."""
        return list(self.model.predict(x).probabilities)

    def encode_response(self, output):
        """Names the class."""
        best = int(output.argmax())
        return {"label": self.model.classes[best], "confidence": float(output[best])}


def serve_bare(run: Path, port: int) -> None:
    """Serves as LitServe's documentation does."""
    server = litserve.LitServer(Bare(run), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=port, generate_client_file=False, log_level="warning",
        access_log=False,
    )  # fmt: skip


@contextlib.contextmanager
def started(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a server in a process group of its own, and waits until it answers."""
    process = subprocess.Popen([sys.executable, *command], start_new_session=True)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(command)} did not start") from None
                time.sleep(0.5)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        process.terminate()
        process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def load(port: int, seconds: float, connections: int, script: Path) -> dict[str, float]:
    """Returns what wrk measured."""
    got = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s", "-s", script,
         f"http://127.0.0.1:{port}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # wrk leaves requests behind; this one is answered after them, so that the next round is clean.
    last = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict",
        b'{"text": "the last one"}',
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(last, timeout=120).close()
    return json.loads(got.stdout.strip().splitlines()[-1])


def change(run: Path, generation: int, after: float) -> threading.Thread:
    """Makes a generation the champion after some seconds, as evolve and rollback do."""

    def enthrone() -> None:
        journal = Journal(run / "journal.sqlite")
        with journal.writing():
            journal.crown(generation, "benchmark")
        journal.close()

    timer = threading.Timer(after, enthrone)
    timer.start()
    return timer


def bodies(run: Path, file: Path) -> None:
    """Writes a request a line, with texts of the run."""
    journal = Journal(run / "journal.sqlite")
    rows = journal.execute("SELECT text FROM records ORDER BY seq DESC LIMIT 1000")
    texts = [row[0] for row in rows] or ["the team won the match in the last minute"] * 10
    journal.close()
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(run: Path, given: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Loads both servers in turn."""
    journal = Journal(run / "journal.sqlite")
    models = [g.number for g in journal.generations() if g.model]
    champion = journal.champion().number
    journal.close()
    others = [number for number in models if number != champion] or [champion]
    # Promotion, promotion, rollback; in the rounds of ours.
    changes = [others[-1], champion, others[-1]]
    os.environ["BODIES"], script = str(run / "bodies"), run / "load.lua"
    script.write_text(LOAD)
    bodies(run, run / "bodies")
    ports = {"ours": free_port(), "bare": free_port()}
    ours = ["-m", "lightning_evolve", "serve", str(run), "--port", str(ports["ours"]),
            "--max_batch_size", str(BATCH), "--batch_timeout", str(WAIT)]  # fmt: skip
    bare = [__file__, str(run), "--bare", str(ports["bare"])]
    found: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    with started(ours, ports["ours"]) as one, started(bare, ports["bare"]) as other:
        processes = {"ours": one, "bare": other}
        for number in range(-1, given.rounds):
            for name in ("ours", "bare") if number % 2 else ("bare", "ours"):
                for each, process in processes.items():
                    os.killpg(process.pid, signal.SIGCONT if each == name else signal.SIGSTOP)
                changing = None
                if name == "ours" and 0 <= number < len(changes):
                    changing = change(run, changes[number], given.seconds / 3)
                got = load(ports[name], given.seconds, given.connections, script)
                if changing:
                    changing.join()
                if number >= 0:  # the first warms up
                    found[name].append(got)
        for process in processes.values():
            os.killpg(process.pid, signal.SIGCONT)
        with urllib.request.urlopen(f"http://127.0.0.1:{ports['ours']}/health") as answer:
            served = json.load(answer)
        if given.rounds >= len(changes):
            assert served["champion"] == changes[-1], served
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of a run of evolve")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a round (default: 10)")
    parser.add_argument("--rounds", type=int, default=6, help="of each server (default: 6)")
    parser.add_argument("--connections", type=int, default=64, help="of wrk (default: 64)")
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        serve_bare(given.run, given.bare)
        return
    if given.rounds < 3:
        parser.error("--rounds must be at least 3, for two promotions and a rollback")
    if not shutil.which("wrk"):
        print("skipped: wrk is not installed (apt-get install wrk)")
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        shutil.copytree(given.run, run)
        found = measure(run, given)
    table = Table(
        title=f"{given.connections} connections, {given.rounds} rounds of {given.seconds:g} s",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("server", "requests/s", "p50 ms", "p99 ms", "requests", "failed"):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    rates = {n: np.array([r["requests"] / r["seconds"] for r in rs]) for n, rs in found.items()}
    for name, rounds in found.items():
        table.add_row(
            name,
            f"{np.median(rates[name]):.0f}",
            *(f"{np.median([r[p] for r in rounds]):.1f}" for p in ("p50", "p99")),
            *(f"{sum(r[key] for r in rounds):.0f}" for key in ("requests", "failed")),
        )
    Console().print(table)
    ratio = interval(rates["ours"] / rates["bare"])
    print("ours over bare, throughput: {mean:.3f} ({low:.3f} to {high:.3f})".format(**ratio))


if __name__ == "__main__":
    main()
