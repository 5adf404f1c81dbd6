from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_evolve.errors import UsageError
from lightning_evolve.sweeps import specification
from lightning_evolve.sweeps.hyperband import Hyperband
from lightning_evolve.sweeps.specification import Metric, load

COMPLETE: dict[str, Any] = {
    "name": "rates",
    "description": "both rates",
    "project": "p",
    "entity": "e",
    "method": "bayes",
    "metric": {"name": "val/reward", "goal": "maximize"},
    "program": "lightning_evolve",
    "command": ["${env}", "${interpreter}", "-m", "${program}", "fit", 3, "${args}"],
    "run_cap": 30,
    "early_terminate": {"type": "hyperband", "min_iter": 4, "eta": 2, "strict": False},
    "parameters": {
        "model.init_args.beta": {"distribution": "log_uniform_values", "min": 1e-3, "max": 1},
        "model.init_args.alpha": {"min": 0.1, "max": 0.5},
        "model.init_args.meta": {"values": ["SGD", "Linear"]},
    },
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: object = None, **changes: Any) -> Path:
        """Writes the complete file with changes; a change to None removes the key."""
        if content is None:
            merged = {**COMPLETE, **changes}
            content = {key: value for key, value in merged.items() if value is not None}
        path = tmp_path / "alpha_beta.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as refused:
        load(path)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_complete_file(write: Write) -> None:
    pytest.importorskip("optuna")
    path = write()
    sweep = load(path)
    assert (sweep.name, sweep.method, sweep.run_cap) == ("rates", "bayes", 30)
    assert sweep.metric == Metric("val/reward", "maximize")
    assert sweep.early_terminate == Hyperband(min_iter=4, eta=2, strict=False)
    assert sweep.program == "lightning_evolve"
    assert sweep.command[4:] == ["fit", "3", "${args}"]
    # Neither sorted nor nested.
    assert list(sweep.parameters) == list(COMPLETE["parameters"])
    assert sweep.parameters["model.init_args.alpha"].name == "uniform"
    assert sweep.text == path.read_text()
    assert sweep.size is None


def test_what_is_left_out(write: Write) -> None:
    sweep = load(
        write(
            {
                "method": "random",
                "metric": {"name": "val/loss"},
                "program": "train.py",
                "parameters": {"a": {"value": 1}},
            }
        )
    )
    assert sweep.name == "alpha_beta"
    assert sweep.metric.goal == "minimize"
    assert sweep.command == ["${env}", "${interpreter}", "${program}", "${args}"]
    assert sweep.early_terminate is None
    assert sweep.run_cap is None


def test_the_size_of_a_grid(write: Write) -> None:
    parameters = {
        "a": {"values": [1, 2, 3]},
        "b": {"min": 1, "max": 4},
        "c": {"value": 0},
        "d": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.5},
    }
    assert load(write(method="grid", parameters=parameters, early_terminate=None)).size == 24


def test_the_complete_file_is_in_wandbs_schema(wandb_schema: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator(wandb_schema).validate(COMPLETE)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(wandb_schema).validate({**COMPLETE, "method": "gird"})


def test_every_key_and_method_of_the_schema_is_known(wandb_schema: dict[str, Any]) -> None:
    known = {*specification._KEYS, *specification._NOT_LOCAL}
    assert set(wandb_schema["properties"]) <= known
    assert known - set(wandb_schema["properties"]) == {"imageuri"}
    names = {
        name
        for definition in wandb_schema["definitions"].values()
        for branch in definition.get("anyOf", [definition])
        for name in branch.get("properties", {}).get("distribution", {}).get("enum", [])
    }
    from lightning_evolve.sweeps.distributions import _KEYS

    assert names == set(_KEYS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metod": "grid"}, "unknown key 'metod'; did you mean 'method'?"),
        ({"method": None}, "method is missing; choose one of grid, random, bayes"),
        ({"method": "gird"}, "there is no method 'gird'; did you mean 'grid'?"),
        ({"method": "custom"}, "there is no method 'custom'; choose one of"),
        ({"scheduler": {"engine": "optuna"}}, "scheduler is for W&B's servers alone; remove it"),
        ({"job": "j"}, "job is for W&B's servers alone"),
        ({"metric": None}, "metric has no name; add metric: {name: val/reward, goal: maximize}"),
        ({"metric": "val/loss"}, "metric has no name"),
        ({"metric": {"name": "x", "goal": "max"}}, "no metric.goal 'max'; choose one of minimize"),
        ({"metric": {"name": "x", "gaol": "max"}}, "unknown key 'metric.gaol'; did you mean"),
        ({"metric": {"name": "test/accuracy"}}, "test/accuracy is of the test split"),
        ({"parameters": None}, "parameters is missing or empty"),
        ({"parameters": {}}, "parameters is missing or empty"),
        ({"parameters": {"a b": {"value": 1}}}, "parameter name 'a b' is not one to W&B"),
        ({"parameters": {"model": {"parameters": {"a": {"value": 1}}}}}, "such as model.a"),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, "parameters.a: min 2 is above max 1"),
        ({"method": "grid"}, "beta: a grid cannot go through log_uniform_values; list values"),
        (
            {
                "method": "grid",
                "parameters": {"a": {"values": [1, 2], "probabilities": [0.5, 0.5]}},
            },
            "a: a grid takes every value once; remove probabilities",
        ),
        ({"program": None}, "program is missing; add program: lightning_evolve"),
        ({"command": "python x.py"}, "command is 'python x.py'; list its words"),
        ({"run_cap": 0}, "run_cap is 0; give a whole number of at least 1"),
        ({"name": 3}, "name is 3; give a text"),
        (
            {"early_terminate": {"min_iter": 3}},
            "early_terminate.type is missing; choose one",
        ),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate has no min_iter"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "max_iter needs s"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 2, "s": 2}}, "s goes with max_iter"),
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 2, "max_iter": 9, "s": 1}},
            "has min_iter and max_iter; keep one",
        ),
        (
            {"early_terminate": {"type": "hyperband", "max_iter": 2, "s": 2}},
            "max_iter is 2, below eta 3: there is no rung; raise it",
        ),
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 2.5}},
            "early_terminate.eta is 2.5; give a whole number of at least 2",
        ),
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 2, "strict": 1}},
            "early_terminate.strict is 1; write true or false",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(write: Write, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(write(**changes))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    assert "no such file" in refusal(path)
    path.write_bytes(b"method: \xff")
    assert "is not UTF-8 (byte 8)" in refusal(path)
    path.write_text("method: [grid")
    assert "is not valid YAML: line 1" in refusal(path)
    path.write_text("")
    assert "is empty" in refusal(path)
    path.write_text("- grid")
    assert "is a list" in refusal(path)


def test_without_optuna_the_extra_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specification, "find_spec", lambda name: None)
    message = refusal(write())
    assert "method bayes needs Optuna; pip install 'lightning-evolve[sweeps]'" in message
    # It is not needed for what we do ourselves.
    load(write(method="random"))


def test_settings_without_effect_warn(write: Write) -> None:
    metric = {"name": "val/loss", "target": 0.1}
    with pytest.warns(UserWarning, match=r"metric\.target is for W&B's servers"):
        load(write(method="random", early_terminate=None, metric=metric))


def test_values_where_exponents_are_meant_warn(write: Write) -> None:
    parameters = {"a": {"distribution": "log_uniform", "min": 1e-4, "max": 0.1}}
    with pytest.warns(UserWarning, match=r"goes from 1 to 1\.11; .*use log_uniform_values"):
        load(write(method="random", early_terminate=None, parameters=parameters))


def test_reading_a_file_imports_nothing_heavy(write: Write) -> None:
    import subprocess
    import sys

    path = write(method="random", early_terminate=None)
    code = (
        "import sys; from pathlib import Path; from lightning_evolve.sweeps import load; "
        f"load(Path({str(path)!r})); "
        "print([m for m in ('torch', 'lightning', 'optuna', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert importlib.util.find_spec("torch") is not None
