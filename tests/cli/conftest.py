from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import standins  # noqa: F401 - the parser finds its classes by their short names
import yaml

from lightning_evolve.cli import main

CONFIG = {
    "model": {
        "class_path": "TinyModel",
        "init_args": {"learner": {"class_path": "Head", "init_args": {"hidden_size": 8}}},
    },
    "data": {"class_path": "TinyTasks"},
    "trainer": {"max_steps": 8, "log_every_n_steps": 1, "accelerator": "cpu"},
    "comparison": {"enabled": False},
}


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def mistake(self) -> str:
        """The one line for a mistake of the user."""
        assert self.code == 2, self
        assert self.err.startswith("lightning-evolve: error: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.removeprefix("lightning-evolve: error: ").strip()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiny.yaml in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return tmp_path


@pytest.fixture
def call(tiny: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs the command line in this process."""

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        code = main(list(arguments))
        return Answer(code, *capsys.readouterr())

    return run
