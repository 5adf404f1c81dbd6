"""Command-line arguments before they are parsed: short forms, order, and a look at single ones."""

from __future__ import annotations

from collections import deque

from lightning_evolve.errors import UsageError

SHORT_FORMS = {
    "--alpha": "--model.init_args.alpha",
    "--beta": "--model.init_args.beta",
    "--steps": "--model.init_args.steps",
    "--seed": "--seed_everything",
    "--wandb": "--wandb.mode",
}
# What a short form means without a value.
_BARE = {"--wandb": "offline"}


def expand(arguments: list[str]) -> list[str]:
    """Writes short forms in full, and puts config files first so that options override them.

    Args:
        arguments: as the user gave them, ``--name value`` or ``--name=value``.

    Raises:
        UsageError: if the last one lacks its value.

    Example:
        >>> expand(["--alpha", "0.1", "-c", "a.yaml", "--seed=3"])
        ['--config=a.yaml', '--model.init_args.alpha=0.1', '--seed_everything=3']
        >>> expand(["--wandb", "--alpha", "0.1"])
        ['--wandb.mode=offline', '--model.init_args.alpha=0.1']
    """
    configs, rest = [], []
    remaining = deque(arguments)
    while remaining:
        argument = remaining.popleft()
        name, equals, value = argument.partition("=")
        if name in ("-c", "--config") or name in SHORT_FORMS:
            if not equals:
                if name in _BARE and (not remaining or remaining[0].startswith("-")):
                    value = _BARE[name]
                elif remaining:
                    value = remaining.popleft()
                else:
                    raise UsageError(f"{name} needs a value")
            if name in SHORT_FORMS:
                rest.append(f"{SHORT_FORMS[name]}={value}")
            else:
                configs.append(f"--config={value}")
        else:
            rest.append(argument)
    return configs + rest


def take(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """Takes an option out.

    Args:
        arguments: ``--name value`` or ``--name=value``.
        name: of the option, with its dashes.

    Returns:
        Its last value, ``None`` if it is not there, and the other arguments.

    Raises:
        UsageError: if it is the last argument and lacks its value.

    Example:
        >>> take(["--seeds", "3", "--config=a.yaml"], "--seeds")
        ('3', ['--config=a.yaml'])
    """
    value, rest = None, []
    remaining = iter(arguments)
    for argument in remaining:
        found, equals, given = argument.partition("=")
        if found != name:
            rest.append(argument)
        elif equals:
            value = given
        else:
            value = next(remaining, None)
            if value is None:
                raise UsageError(f"{name} needs a value")
    return value, rest


def config_files(arguments: list[str]) -> list[str]:
    """Returns the config files among arguments that :func:`expand` has put in order.

    Args:
        arguments: as from :func:`expand`.
    """
    return [a.partition("=")[2] for a in arguments if a.startswith("--config=")]


def check_seeds(arguments: list[str]) -> None:
    """Refuses a seed of the data or the model alone: one seed holds for both.

    Args:
        arguments: as from :func:`expand`.

    Raises:
        UsageError: naming the argument.
    """
    for argument in arguments:
        name, _, value = argument.partition("=")
        number = value.removeprefix("-").isdecimal() and name == "--seed_everything"
        if number and not 0 <= int(value) < 2**32:
            raise UsageError(f"--seed is {value}; give a number from 0 to {2**32 - 1}")
        if name.replace(".init_args.", ".") in ("--data.seed", "--model.seed"):
            raise UsageError(f"{name} cannot be set alone; use --seed for data and model")
