from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from itertools import count
from pathlib import Path

import pytest

from lightning_evolve.evolution.artifacts import Artifacts
from lightning_evolve.evolution.feedback import FeedbackStore
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.model import Model
from tests.serving.runs import promote
from tests.serving.servers import Server, free_port, launch, serving, wait_for


class Load:
    """Clients that predict and correct without a pause, and what they were told."""

    def __init__(self, server: Server, clients: int = 4) -> None:
        self.server = server
        self.predicted: list[dict] = []
        self.corrected: list[str] = []
        self.failed: list[object] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]

    def _run(self, client: int) -> None:
        for number in count():
            if self._over.is_set():
                return
            try:
                got = self.server.ask("POST", "/predict", {"text": f"match {client} {number}"})
                if got.status != 200:
                    self.failed.append(got)
                    continue
                self.predicted.append(got.content)
                if number % 3 == 0:
                    body = {"id": got.content["id"], "label": "money"}
                    given = self.server.ask("POST", "/feedback", body)
                    if given.status == 200:
                        self.corrected.append(body["id"])
                    else:
                        self.failed.append(given)
            except OSError as error:
                self.failed.append(error)
                time.sleep(0.01)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def kept(run: Path) -> tuple[set[str], set[str]]:
    """Ids of the predictions and of the corrections that are in the store."""
    store = FeedbackStore(run / "service.sqlite")
    corrected = store._db.execute("SELECT prediction_id FROM feedback").fetchall()
    return {p.id for p in store.predictions(limit=10**6)}, {row[0] for row in corrected}


@pytest.fixture
def copy(run, tmp_path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    return folder


def champion(server: Server) -> int:
    return server.ask("GET", "/health").content["champion"]


def test_promotion_rollback_and_stop_under_load(copy) -> None:
    with serving(copy) as server:
        with Load(server) as load:
            for generation in (0, 1, 0):
                time.sleep(0.5)
                promote(copy, generation)
                wait_for(lambda wanted=generation: champion(server) == wanted, 20)
            wait_for(lambda: load.predicted[-1]["champion"] == 0)
        assert not load.failed
        assert {one["champion"] for one in load.predicted} == {0, 1, 2}

        # A champion that cannot be loaded leaves the one before in use, and says so.
        artifacts, journal = Artifacts(copy / "artifacts"), Journal(copy / "journal.sqlite")
        third = next(g for g in journal.generations() if g.number == 2)
        for part in Model.parts(artifacts, third.model):
            artifacts.path(part).write_bytes(b"damaged")
        promote(copy, 2)
        wait_for(lambda: server.ask("GET", "/health").content["problem"], 20)
        got = server.ask("GET", "/health").content
        assert got["champion"] == 0
        assert "damaged" in got["problem"]
        assert server.predict("the team won")["champion"] == 0

        # Whoever has sent a request when it is told to stop gets an answer.
        with Load(server) as load:
            wait_for(lambda: len(load.predicted) > 20)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
        assert all(isinstance(error, OSError) for error in load.failed), load.failed
    predictions, corrections = kept(copy)
    assert {one["id"] for one in load.predicted} <= predictions
    assert set(load.corrected) <= corrections

    # The same run does not start again: its champion is damaged. One line says so.
    process, _ = launch(copy)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert [line for line in said.splitlines() if "error" in line] == [said.splitlines()[-1]]
    assert "damaged" in said


def test_killed_under_load_and_started_again_on_the_same_port(copy) -> None:
    port = free_port()
    with serving(copy, port=port) as server:
        with Load(server) as load:
            wait_for(lambda: len(load.corrected) > 20)
            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait()
            time.sleep(0.5)
        predictions, corrections = kept(copy)
        assert {one["id"] for one in load.predicted} <= predictions
        assert set(load.corrected) <= corrections
        # Its other processes have gone too, so that the port is free.
        with serving(copy, port=port) as again, serving(copy) as beside:
            mine, other = again.predict("the team won"), beside.predict("the team won")
            assert mine["label"] == other["label"] == "sport"
            for server, identity in ((again, other["id"]), (beside, mine["id"])):
                body = {"id": identity, "label": "money"}
                assert server.ask("POST", "/feedback", body).status == 200
            # Without its worker a server ends, for whoever looks after it to start it again.
            listed = subprocess.run(
                ["ps", "-ww", "-o", "pid=", "-o", "args=", "--ppid", str(beside.process.pid)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines()
            worker = next(line for line in listed if "spawn_main" in line)
            os.kill(int(worker.split()[0]), signal.SIGKILL)
            assert beside.process.wait(60) == 1
