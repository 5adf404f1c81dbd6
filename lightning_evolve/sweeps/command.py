"""The command line of a trial: the macros of a W&B agent, expanded as the agent does.

Source: https://docs.wandb.ai/guides/sweeps/define-sweep-configuration (Command example).
"""

from __future__ import annotations

import json
import os
import re
from difflib import get_close_matches
from typing import Any

from lightning_evolve.errors import UsageError

_MACRO = re.compile(r"\$\{(.*)\}", re.DOTALL)
_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def expand(
    command: list[str], program: str, parameters: dict[str, Any], interpreter: str
) -> list[str]:
    """Returns the command of one trial.

    Args:
        command: the file's, with macros; as with an agent, ``${envvar:NAME}`` is replaced
            anywhere, by the name itself where the variable is not set, and every other macro only
            where it is a word of its own.
        program: what ``${program}`` stands for.
        parameters: value by name, for ``${args}`` and its relatives.
        interpreter: what ``${interpreter}`` stands for; an agent says ``python``.

    Raises:
        UsageError: for a macro that is not known, which an agent would drop without a word, and
            for ``${args_json_file}``.

    Example:
        >>> expand(["${interpreter}", "-m", "${program}", "${args}"], "p", {"a.b": 0.5}, "python")
        ['python', '-m', 'p', '--a.b=0.5']
    """
    pairs = [f"{name}={value}" for name, value in parameters.items()]
    macros = {
        "env": ["/usr/bin/env"] if os.name == "posix" else [],
        "interpreter": [interpreter],
        "program": [program],
        "args": [f"--{pair}" for pair in pairs],
        "args_no_hyphens": pairs,
        "args_no_equals": [word for n, v in parameters.items() for word in (f"--{n}", str(v))],
        "args_no_boolean_flags": [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in parameters.items()
            if value is not False
        ],
        "args_json": [json.dumps(parameters)],
        "args_append_hydra": [f"+{pair}" for pair in pairs],
        "args_override_hydra": [f"++{pair}" for pair in pairs],
    }
    words: list[str] = []
    for part in command:
        word = _VARIABLE.sub(lambda match: os.environ.get(match[1], match[1]), str(part))
        macro = _MACRO.fullmatch(word)
        words += _known(macro[1], macros) if macro else [word]
    return words


def _known(name: str, macros: dict[str, list[str]]) -> list[str]:
    if name in macros:
        return macros[name]
    if name == "args_json_file":
        raise UsageError(
            "command: ${args_json_file} has no file in a local sweep; use ${args_json} or ${args}"
        )
    close = get_close_matches(name, macros, n=1)
    remedy = f"did you mean ${{{close[0]}}}?" if close else f"there are {', '.join(macros)}"
    raise UsageError(f"command: there is no macro ${{{name}}}; {remedy}")
