from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path

import pytest

from lightning_evolve.evolution.artifacts import Artifacts
from lightning_evolve.evolution.feedback import FeedbackStore, Prediction
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.model import Model
from tests.serving.runs import promote
from tests.serving.servers import Server, free_port, launch, serving, wait_for

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from serve_kills import Load, kept, worker


def load_of(server: Server) -> Load:
    return Load(server.port, ["match"], ["money"])


@pytest.fixture
def copy(run, tmp_path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    return folder


def champion(server: Server) -> int:
    return server.ask("GET", "/health").content["champion"]


def test_promotion_rollback_and_stop_under_load(copy) -> None:
    with serving(copy) as server:
        with load_of(server) as load:
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
        with load_of(server) as load:
            wait_for(lambda: len(load.predicted) > 20)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
        assert all(isinstance(e, OSError | HTTPException) for e in load.failed), load.failed
    kept(copy, load)

    # The same run does not start again: its champion is damaged. One line says so.
    process, _ = launch(copy)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert [line for line in said.splitlines() if "error" in line] == [said.splitlines()[-1]]
    assert "damaged" in said


def test_killed_under_load_and_started_again_on_the_same_port(copy) -> None:
    port = free_port()
    with serving(copy, port=port) as server:
        with load_of(server) as load:
            wait_for(lambda: len(load.corrected) > 20)
            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait()
            time.sleep(0.5)
        kept(copy, load)
        store, shares = FeedbackStore(copy / "service.sqlite"), {"sport": 1.0}
        old = Prediction("old", "", "sport", 1.0, shares, 0, time.time() - 2 * 86400)
        recent = replace(old, id="recent", time=time.time() - 0.5 * 86400)
        store._db.execute("DELETE FROM predictions")
        store.log_predictions([old, recent])
        # Its other processes have gone too, so that the port is free.
        with serving(copy, "--keep_days=1", port=port) as again, serving(copy) as beside:
            wait_for(lambda: [p.id for p in store.predictions()][:1] == ["recent"])
            mine, other = again.predict("the team won"), beside.predict("the team won")
            assert mine["label"] == other["label"] == "sport"
            for server, identity in ((again, other["id"]), (beside, mine["id"])):
                body = {"id": identity, "label": "money"}
                assert server.ask("POST", "/feedback", body).status == 200
            # Without its worker a server ends, for whoever looks after it to start it again.
            # It does not wait for answers that nobody will give.
            with load_of(beside):
                time.sleep(0.3)
                os.kill(worker(beside.process.pid), signal.SIGKILL)
                assert beside.process.wait(15) == 1
