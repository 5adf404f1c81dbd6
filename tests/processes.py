"""The command line in forks of the test's process: the imports, done once, cost seconds each."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

import lightning_evolve.cli.lightning_cli  # noqa: F401 - so that no fork has to
from lightning_evolve.cli import main

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _file() -> int:
    number, name = tempfile.mkstemp()
    os.unlink(name)
    return number


class Forked(multiprocessing.get_context("fork").Process):
    """A command that has begun, with as much of the interface of Popen as tests have use for.

    Ranks that Lightning starts from it are not forks: they are what they are for a user.
    """

    def __init__(
        self, *arguments: str, cwd: Path, variables: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(daemon=True)  # none outlives the tests
        self.arguments, self.cwd, self.variables = arguments, cwd, variables or {}
        torch.set_num_threads(1)  # threads do not survive a fork
        self._outputs = [_file(), _file()]
        self.start()

    def run(self) -> None:
        for number, file in enumerate(self._outputs, start=1):
            os.dup2(file, number)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # those of the two numbers
        os.chdir(self.cwd)
        os.environ.update({"MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)})
        os.environ.update(self.variables)
        # As `python -m lightning_evolve` has them; Lightning starts its ranks by them.
        sys.modules["__main__"].__spec__ = importlib.util.find_spec("lightning_evolve.__main__")
        sys.argv = ["lightning_evolve", *self.arguments]
        sys.exit(main())

    @property
    def returncode(self) -> int | None:
        return self.exitcode

    def poll(self) -> int | None:
        return self.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end; gives what was written to standard output and error."""
        self.join(timeout)
        if self.exitcode is None:
            self.kill()
            raise TimeoutError(f"{' '.join(self.arguments)} goes on for too long")
        out, err = (os.pread(file, 1 << 24, 0).decode() for file in self._outputs)
        return out, err

    def __del__(self) -> None:
        for file in self._outputs:
            os.close(file)
