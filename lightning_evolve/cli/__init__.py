"""The command line ``lightning-evolve``.

Help, the version and mistakes in the command are answered from here, with the standard library
alone: importing Lightning takes seconds. Each command is a function in a module of its own, which
is imported when it is called.
"""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module

from lightning_evolve import __version__
from lightning_evolve.cli.usage import OVERVIEW, USAGE
from lightning_evolve.errors import UsageError

_MODULES = {
    "fit": "training",
    "validate": "training",
    "test": "training",
    "predict": "training",
    "repeat": "repeat",
    "sweep": "sweep",
    "export": "export",
    "evolve": "evolve",
    "history": "history",
    "rollback": "history",
    "serve": "serve",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the command and its arguments; those of the process if not given.

    Returns:
        0, or 2 for a mistake of the user, which is told in one line on standard error, 1 where a
        run of a sweep failed, or 130 after Ctrl-C.
    """
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        return 0
    if command == "--version":
        print(f"lightning-evolve {__version__}")
        return 0
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for the classes of the user's own, as python -m has it
    try:
        if command not in _MODULES:
            raise UsageError(_unknown(command))
        if "-h" in arguments or "--help" in arguments:
            print(USAGE[command], end="")
            return 0
        run = import_module(f"{__name__}.{_MODULES[command]}").run
        code: int = run(command, arguments)
    except UsageError as error:
        print(f"lightning-evolve: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lightning-evolve: interrupted", file=sys.stderr)
        return 130
    return code


def _unknown(command: str) -> str:
    if command.startswith("-"):
        return f"the command comes first, then {command}: lightning-evolve {{{','.join(_MODULES)}}}"
    close = get_close_matches(command, _MODULES, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(_MODULES)}"
    return f"there is no command {command!r}; {remedy}"
