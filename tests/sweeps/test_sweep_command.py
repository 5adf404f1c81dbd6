from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_evolve.errors import UsageError
from lightning_evolve.sweeps.command import expand

PARAMETERS: dict[str, Any] = {
    "model.init_args.alpha": 1e-05,
    "model.init_args.estimator": "FirstOrder",
    "trainer.max_steps": 20,
    "data.init_args.shuffle": False,
    "model.init_args.persistent": True,
    "data.init_args.subset": None,
    "text": "two words",
    "layers": [1, 2],
}
COMMANDS = [
    ["${env}", "${interpreter}", "${program}", "${args}"],
    ["${env}", "${interpreter}", "-m", "${program}", "fit", "--config", "a.yaml", "${args}"],
    ["python", "x.py", "${args_no_hyphens}"],
    ["python", "x.py", "${args_no_equals}", "--last"],
    ["python", "x.py", "${args_no_boolean_flags}"],
    ["python", "x.py", "${args_json}"],
    ["python", "x.py", "${args_append_hydra}", "${args_override_hydra}"],
    ["${envvar:SWEEP_TEST_PYTHON}", "--seed", 3, 0.5, "${program}"],
    ["--at=${envvar:SWEEP_TEST_PYTHON}/x/${envvar:SWEEP_TEST_UNSET}", "${args}", "${args}"],
    ["--out=${program}", "$HOME", "{args}", "${args", "a b"],
    ["${envvar:SWEEP_TEST_MACRO}"],
]


def agents(command: list[Any], program: str, parameters: dict[str, Any]) -> list[str]:
    """What wandb's agent would run: its own method, with the process left out."""
    agent = pytest.importorskip("wandb.wandb_agent")
    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent, "AgentProcess", Process)
        patch.setenv("WANDB_RUN_ID", "r")
        patch.setenv("WANDB_SWEEP_PARAM_PATH", "p")
        self = object.__new__(agent.Agent)
        self._sweep_command = list(command)
        self._in_jupyter, self._function, self._forward_signals = False, None, False
        self._run_processes = {}
        args = {name: {"value": value} for name, value in parameters.items()}
        self._command_run({"run_id": "r", "program": program, "args": args})
    return started[0]


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(map(str, c)) for c in COMMANDS])
def test_a_command_is_what_wandbs_agent_runs(
    command: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The agent writes a file of the parameters beside where it runs.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEP_TEST_PYTHON", "/opt/a python")
    monkeypatch.setenv("SWEEP_TEST_MACRO", "${program}")
    monkeypatch.delenv("SWEEP_TEST_UNSET", raising=False)
    expected = agents(command, "lightning_evolve", PARAMETERS)
    assert expand(command, "lightning_evolve", PARAMETERS, "python") == expected


def test_the_file_is_left_as_it_was() -> None:
    command = ["${envvar:HOME}", "${args}"]
    expand(command, "p", {"a": 1}, "python")
    assert command == ["${envvar:HOME}", "${args}"]


def test_an_expanded_command_runs() -> None:
    command = ["${env}", "${interpreter}", "-c", "import sys; print(sys.argv[1:])", "${args}"]
    words = expand(command, "", {"model.alpha": 1e-05, "name": "a b"}, sys.executable)
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "['--model.alpha=1e-05', '--name=a b']"


@pytest.mark.parametrize(
    ("macro", "remedy"),
    [
        ("${argz}", "there is no macro ${argz}; did you mean ${args}?"),
        ("${envvar:lower}", "there is no macro ${envvar:lower}"),
        ("${xyz}", "there is no macro ${xyz}; there are env, interpreter"),
        ("${args_json_file}", "has no file in a local sweep; use ${args_json}"),
    ],
)
def test_a_macro_that_means_nothing_is_refused(macro: str, remedy: str) -> None:
    with pytest.raises(UsageError) as refused:
        expand(["python", macro], "p", {}, "python")
    assert remedy in str(refused.value)
