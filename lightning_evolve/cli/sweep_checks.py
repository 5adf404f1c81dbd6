"""What can be known of a sweep before any of its runs starts."""

from __future__ import annotations

import io
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import yaml

from lightning_evolve.cli.arguments import config_files
from lightning_evolve.cli.arguments import expand as in_full
from lightning_evolve.cli.config_files import check_config
from lightning_evolve.errors import UsageError, mistake_behind
from lightning_evolve.sweeps import Sweep, expand, search_for

_MODULE = ["-m", "lightning_evolve", "fit"]
# More choices of one parameter than this are not tried out one by one.
_FEW = 30


def trial_command(sweep: Sweep, parameters: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the command of a trial as its file has it: up to ``fit``, and the arguments of it.

    Args:
        sweep: the file.
        parameters: of the trial.

    Raises:
        UsageError: if it is no ``fit`` of ours.
    """
    words = _command(sweep, parameters)
    for end in range(len(_MODULE), len(words) + 1):
        if words[end - len(_MODULE) : end] == _MODULE:
            return words[:end], words[end:]
    raise UsageError(
        f"command: it becomes {shlex.join(words)}; a local sweep runs -m lightning_evolve fit, so "
        "write command: [${env}, ${interpreter}, -m, ${program}, fit, ..., ${args}] and "
        "program: lightning_evolve"
    )


def fit_arguments(sweep: Sweep, parameters: dict[str, Any], options: list[str]) -> list[str]:
    """Returns the arguments of a trial's ``fit``.

    Args:
        sweep: the file.
        parameters: of the trial.
        options: of ``fit``, for all runs.
    """
    return [*trial_command(sweep, parameters)[1], *options]


def check_experiment(sweep: Sweep, options: list[str]) -> dict[str, Any]:
    """Tries the first trial, and each other choice and bound of a parameter, without training.

    Args:
        sweep: the file.
        options: of ``fit``, for all runs.

    Returns:
        The resolved configuration of the first trial.

    Raises:
        UsageError: for what the parser or the model refuses, or a metric that is never logged.
    """
    first = search_for(sweep, 0).propose(0, [])
    assert first is not None, "a grid has at least one point"
    for name in config_files(in_full(fit_arguments(sweep, first, options))):
        check_config(name)
    experiment = _resolved(sweep, first, options)
    _check_metric(sweep, experiment)
    if experiment["trainer"]["fast_dev_run"]:
        raise UsageError("trainer.fast_dev_run leaves no results; give --trainer.max_steps instead")
    if not experiment["comparison"]["enabled"]:
        raise UsageError(
            "comparison.enabled is false, and a run without results.json does not count as "
            "finished; give --comparison.rivals=[] to spend no time on rivals"
        )
    for name, distribution in sweep.parameters.items():
        values = distribution.choices()
        listed = values is not None and len(values) <= _FEW
        ends = [distribution.at(0.001), distribution.at(0.999)]
        for value in values if values and listed else ends:
            if value == first[name] and listed:
                continue
            if value != first[name] and _command(sweep, first) == _command(
                sweep, {**first, name: value}
            ):
                raise UsageError(
                    f"command does not take {name}: trials would differ in nothing; add "
                    f'"${{args}}" to it, or "${{{name}}}"'
                )
            other = _resolved(sweep, {**first, name: value}, options)
            if not listed:
                # Of a listed value, the run that takes it tells; bounds would spoil many.
                _check_model(other, f"{name}={value}")
    return experiment


def _command(sweep: Sweep, parameters: dict[str, Any]) -> list[str]:
    return expand(sweep.command, sweep.program, parameters, sys.executable)


def _resolved(sweep: Sweep, parameters: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """Returns the configuration of a trial with all that it leaves to defaults."""
    from lightning_evolve.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        arguments = fit_arguments(sweep, parameters, options)
        code = main(["fit", *arguments, "--wandb=off", "--print_config"])
    if code:
        said = err.getvalue().strip().splitlines()[-1]
        raise UsageError(said.removeprefix("lightning-evolve: error: "))
    resolved: dict[str, Any] = yaml.safe_load(out.getvalue())
    return resolved


def _check_metric(sweep: Sweep, experiment: dict[str, Any]) -> None:
    module, _, name = experiment["model"]["class_path"].rpartition(".")
    # A model from elsewhere does not tell what it logs.
    known = getattr(getattr(import_module(module), name), "METRICS", None)
    if known is not None and sweep.metric.name not in known:
        close = get_close_matches(sweep.metric.name, known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"
        raise UsageError(f"metric.name: {name} never logs {sweep.metric.name!r}; {remedy}")


def _check_model(experiment: dict[str, Any], what: str) -> None:
    """Builds the model's object, which loads no data."""
    import lightning as L

    from lightning_evolve.cli.lightning_cli import Parser

    parser = Parser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningModule, "model")
    # The new name, where there is one: the old one warns then.
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        build(parser.parse_object({"model": experiment["model"]}))
    except Exception as error:
        if mistake := mistake_behind(error):
            raise UsageError(f"the sweep can choose {what}: {mistake}") from error
        raise
