"""A sweep file in W&B's schema, read and checked.

Source: https://docs.wandb.ai/guides/sweeps/sweep-config-keys.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lightning_evolve.errors import UsageError
from lightning_evolve.sweeps.distributions import Distribution, parse
from lightning_evolve.sweeps.hyperband import Hyperband
from lightning_evolve.yaml_files import read_mapping

_METHODS = ("grid", "random", "bayes")
# What W&B's server and its pages go by, and a local sweep has no use for.
_FOR_WANDB = ("apiVersion", "kind", "controller", "description", "entity", "project")
_KEYS = (
    *("name", "method", "metric", "parameters", "program", "command", "early_terminate", "run_cap"),
    *_FOR_WANDB,
)
_NOT_LOCAL = ("job", "image_uri", "imageuri", "metrics", "scheduler")
_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Metric:
    """What the sweep is to make high or low.

    Args:
        name: as it is logged, e.g. ``val/reward``.
        goal: whether low or high is good.
    """

    name: str
    goal: Literal["minimize", "maximize"] = "minimize"


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Args:
        name: the file's ``name``, else the file's own name without its ending.
        method: how parameters are chosen.
        metric: the objective.
        parameters: by dotted name, in the file's order.
        program: what ``${program}`` in the command stands for.
        command: of a run, with macros.
        early_terminate: when to stop a run that is behind; None for never.
        run_cap: the largest number of runs; None for any number.
        text: the file, as it is.
    """

    name: str
    method: Literal["grid", "random", "bayes"]
    metric: Metric
    parameters: dict[str, Distribution]
    program: str
    command: list[str]
    early_terminate: Hyperband | None
    run_cap: int | None
    text: str

    @property
    def size(self) -> int | None:
        """Number of combinations of a grid; None for the other methods."""
        if self.method != "grid":
            return None
        return math.prod(len(d.choices() or ()) for d in self.parameters.values())


def load(path: Path) -> Sweep:
    """Reads a sweep file.

    Args:
        path: a YAML file that ``wandb sweep`` would take as well.

    Raises:
        UsageError: for a file that cannot be read, a key, method or distribution that does not
            exist, bounds or values that make no sense, a metric of the test split, and an extra
            that is not installed; naming the file, the value and the remedy.
    """
    text, content = read_mapping(
        path, kind="sweep file", remedy="give another file", keys="method and parameters"
    )
    try:
        sweep = _sweep(path.stem, text, content)
        _check_optuna(sweep)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return sweep


def _sweep(stem: str, text: str, content: dict[str, Any]) -> Sweep:
    for key in content:
        if key in _NOT_LOCAL:
            raise UsageError(f"{key} is for W&B's servers alone; remove it to sweep here")
    _check_keys("", content, _KEYS)
    method = _one_of("method", content.get("method"), _METHODS)
    parameters = _parameters(content.get("parameters"))
    if method == "grid":
        _check_grid(parameters)
    command = content.get("command", _COMMAND)
    if not isinstance(command, list) or not command:
        raise UsageError(f"command is {command!r}; list its words")
    program = content.get("program", "")
    if not isinstance(program, str) or (not program and "${program}" in command):
        raise UsageError("program is missing; add program: lightning_evolve")
    name = content.get("name", stem)
    if not isinstance(name, str) or not name:
        raise UsageError(f"name is {name!r}; give a text")
    early = content.get("early_terminate")
    return Sweep(
        name=name,
        method=method,
        metric=_metric(content.get("metric")),
        parameters=parameters,
        program=program,
        command=[str(word) for word in command],
        early_terminate=None if early is None else _hyperband(early),
        run_cap=_whole("run_cap", content.get("run_cap")),
        text=text,
    )


def _check_keys(at: str, content: dict[str, Any], known: Collection[str]) -> None:
    for key in content:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise UsageError(f"unknown key {at + str(key)!r}; {remedy}")


def _one_of(at: str, value: object, choices: Collection[str]) -> Any:
    if value in choices:
        return value
    listed = ", ".join(choices)
    if value is None:
        raise UsageError(f"{at} is missing; choose one of {listed}")
    close = get_close_matches(str(value), choices, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else f"choose one of {listed}"
    raise UsageError(f"there is no {at} {value!r}; {remedy}")


def _whole(at: str, value: object, least: int = 1) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{at} is {value!r}; give a whole number of at least {least}")
    return value


def _metric(content: object) -> Metric:
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        raise UsageError("metric has no name; add metric: {name: val/reward, goal: maximize}")
    _check_keys("metric.", content, ("name", "goal", "target", "impute", "impute_while_running"))
    for key in ("target", "impute", "impute_while_running"):
        if key in content:
            warnings.warn(f"metric.{key} is for W&B's servers; not used here", stacklevel=2)
    name = content["name"]
    if name.startswith("test/"):
        raise UsageError(
            f"metric {name} is of the test split, which nothing may be chosen by; use "
            f"val/{name.removeprefix('test/')}"
        )
    goal = _one_of("metric.goal", content.get("goal", "minimize"), ("minimize", "maximize"))
    return Metric(name, goal)


def _parameters(content: object) -> dict[str, Distribution]:
    if not isinstance(content, dict) or not content:
        raise UsageError("parameters is missing or empty; name at least one, with its values")
    for name in content:
        if not isinstance(name, str) or not _PARAMETER.fullmatch(name):
            raise UsageError(
                f"parameter name {name!r} is not one to W&B; use letters, digits and . _ -"
            )
    parameters = {name: parse(name, entry) for name, entry in content.items()}
    for name, distribution in parameters.items():
        _check_exponents(name, distribution)
    return parameters


def _check_exponents(name: str, distribution: Distribution) -> None:
    """Warns of what looks like values given to a distribution of exponents."""
    options = distribution.options
    if distribution.name.endswith("log_uniform") and 0 < options["min"] < options["max"] <= 1:
        warnings.warn(
            f"parameters.{name}: the bounds of {distribution.name} are exponents of e, so that it "
            f"goes from {distribution.at(0):.3g} to {distribution.at(1):.3g}; for bounds on the "
            f"value itself use {distribution.name}_values",
            stacklevel=2,
        )


def _check_grid(parameters: dict[str, Distribution]) -> None:
    for name, distribution in parameters.items():
        kind = distribution.name
        if kind == "categorical_w_probabilities":
            raise UsageError(
                f"parameters.{name}: a grid takes every value once; remove probabilities"
            )
        if distribution.choices() is None:
            raise UsageError(
                f"parameters.{name}: a grid cannot go through {kind}; list values, or use method "
                "random or bayes"
            )


def _hyperband(content: object) -> Hyperband:
    if not isinstance(content, dict):
        raise UsageError(f"early_terminate is {content!r}; write {{type: hyperband, min_iter: 3}}")
    _check_keys("early_terminate.", content, ("type", "min_iter", "max_iter", "eta", "s", "strict"))
    _one_of("early_terminate.type", content.get("type"), ("hyperband",))
    numbers = {
        key: _whole(f"early_terminate.{key}", content.get(key))
        for key in ("min_iter", "max_iter", "s")
    }
    eta = _whole("early_terminate.eta", content.get("eta", 3), least=2)
    strict = content.get("strict", True)
    if not isinstance(strict, bool):
        raise UsageError(f"early_terminate.strict is {strict!r}; write true or false")
    assert eta is not None
    hyperband = Hyperband(**numbers, eta=eta, strict=strict)
    if numbers["max_iter"] is None:
        if numbers["min_iter"] is None:
            raise UsageError("early_terminate has no min_iter; give it, or max_iter and s")
        if numbers["s"] is not None:
            raise UsageError("early_terminate.s goes with max_iter; remove it, or give max_iter")
    elif numbers["min_iter"] is not None:
        raise UsageError("early_terminate has min_iter and max_iter; keep one")
    elif numbers["s"] is None:
        raise UsageError("early_terminate.max_iter needs s, the number of rungs below it; add it")
    elif not hyperband.rungs(numbers["max_iter"]):
        raise UsageError(
            f"early_terminate.max_iter is {numbers['max_iter']}, below eta {eta}: there is no rung"
            "; raise it"
        )
    return hyperband


def _check_optuna(sweep: Sweep) -> None:
    if sweep.method == "bayes" and find_spec("optuna") is None:
        raise UsageError("method bayes needs Optuna; pip install 'lightning-evolve[sweeps]'")
