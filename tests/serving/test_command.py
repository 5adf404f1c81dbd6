from __future__ import annotations

import socket
import sqlite3

import pytest

from lightning_evolve.cli import main
from lightning_evolve.cli.serve import TOKEN
from lightning_evolve.evolution.journal import Journal


def refused(capsys, *arguments: str) -> str:
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "serve takes one run, and got 0"),
        (["a", "b"], "serve takes one run, and got 2"),
        (["RUN", "--prot", "3"], "no option --prot"),
        (["RUN", "--port", "x"], "--port x must be a whole number from 1024 to 65535"),
        (["RUN", "--port", "80"], "--port 80 must be"),
        (["RUN", "--rate", "0"], "--rate 0 must be a number from 0.01"),
        (["RUN", "--rate", "nan"], "--rate nan must be"),
        (["RUN", "--max_batch_size", "0"], "--max_batch_size 0 must be"),
        (["RUN", "--keep_days", "0"], "--keep_days 0 must be a number from 0.01"),
        (["RUN", "--batch_timeout", "-1"], "--batch_timeout -1 must be"),
        (["RUN", "--host", "example.org"], "--host example.org is none of 127.0.0.1"),
        (["RUN", "--host", "0.0.0.0"], f"set the environment variable {TOKEN}"),
        (["no/such/run"], "there is no run no/such/run"),
    ],
)
def test_mistakes_in_the_command(arguments, said, run, capsys, monkeypatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    arguments = [str(run) if argument == "RUN" else argument for argument in arguments]
    assert said in refused(capsys, *arguments)


@pytest.mark.parametrize("token", ["", "short", "0123456789abcdé", "0123456789abcde\n"])
def test_a_token_that_is_none(token, run, capsys, monkeypatch) -> None:
    monkeypatch.setenv(TOKEN, token)
    assert f"the token in {TOKEN} must be 16 or more" in refused(capsys, str(run))


def test_a_port_that_is_taken(run, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port} cannot be listened on" in refused(capsys, str(run), f"--port={port}")


def test_runs_that_cannot_be_served(tmp_path, capsys) -> None:
    assert "journal.sqlite" in refused(capsys, str(tmp_path))
    Journal(tmp_path / "journal.sqlite", create=True).close()
    assert "has no champion yet" in refused(capsys, str(tmp_path))
    db = sqlite3.connect(tmp_path / "journal.sqlite")
    db.execute("PRAGMA user_version=99")
    db.close()
    assert "is of version 99" in refused(capsys, str(tmp_path))


def test_without_the_extra_its_name_is_told(run, capsys, monkeypatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith("lightning_evolve.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "litserve", None)
    assert "pip install 'lightning-evolve[serve]'" in refused(capsys, str(run))
