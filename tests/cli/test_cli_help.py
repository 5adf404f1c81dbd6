from __future__ import annotations

import subprocess
import sys

import pytest

from lightning_evolve import __version__
from lightning_evolve.cli import main

COMMANDS = ["fit", "validate", "test", "predict", "repeat", "sweep", "export", "serve"]


def test_help_and_mistakes_in_the_command_import_nothing_heavy() -> None:
    calls = [["--help"], ["--version"], [], ["fti"], *([c, "--help"] for c in COMMANDS)]
    code = f"from lightning_evolve.cli import main\nfor a in {calls}: main(a)"
    got = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in got.stderr.splitlines()}
    assert "lightning_evolve.cli" in imported
    roots = {name.partition(".")[0] for name in imported}
    assert not roots & {"torch", "lightning", "numpy", "yaml", "jsonargparse", "rich"}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_overview_names_the_commands(arguments, capsys) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command, capsys) -> None:
    assert main([command, "--config", "nothing.yaml", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: lightning-evolve {command} ")
    assert f"\n  lightning-evolve {command} " in out
    assert "{" not in out, "a placeholder was left"
    assert max(map(len, out.splitlines())) <= 100


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-evolve {__version__}\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fti", "did you mean 'fit'?"),
        ("xyz", "choose one of fit, "),
        ("--config", "the command comes first"),
    ],
)
def test_wrong_command(command, said, capsys) -> None:
    assert main([command]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
