"""serve: a run's champion over HTTP, with a page for people."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

from lightning_evolve.cli.arguments import take
from lightning_evolve.cli.run_directory import CONFIG
from lightning_evolve.errors import UsageError
from lightning_evolve.yaml_files import read_mapping

TOKEN = "LIGHTNING_EVOLVE_TOKEN"  # noqa: S105 - where it is found
_LOOPBACK = "127.0.0.1"
_HOSTS = (_LOOPBACK, "0.0.0.0", "::")  # noqa: S104 - behind a token
_RATE = 100.0  # requests a second of each client, where others than this machine may ask


def run(command: str, arguments: list[str]) -> int:
    """Serves a run's champion until it is told to stop.

    Args:
        command: ``serve``.
        arguments: the directory of the run, and options.

    Returns:
        0 after SIGTERM or Ctrl-C, 1 if one of the server's processes has died, 2 if the champion
        could not be loaded.

    Raises:
        UsageError: if there is no such run or champion, the port is taken, an option is bad, or
            the token or a package is missing.
    """
    options, rest = _options(arguments)
    if len(rest) != 1 or rest[0].startswith("-"):
        unknown = [argument for argument in rest if argument.startswith("-")]
        raise UsageError(
            f"serve has no option {unknown[0]}; see lightning-evolve serve --help"
            if unknown
            else f"serve takes one run, and got {len(rest)}; such as: "
            "lightning-evolve serve runs/evolution"
        )
    directory = Path(rest[0])
    champion = _champion(directory)
    _check_free(options["host"], options["port"])
    try:
        from lightning_evolve.serving.app import Service, Settings
    except ModuleNotFoundError as error:
        if (error.name or "lightning_evolve").startswith("lightning_evolve"):
            raise
        raise UsageError(
            f"serve needs {error.name}, which is not installed: "
            "pip install 'lightning-evolve[serve]'"
        ) from error
    options |= _processing(directory)
    print(f"loading generation {champion} of {directory}", flush=True)
    code: int = Service(Settings(run=directory, **options)).run()
    return code


def _options(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    host, rest = take(arguments, "--host")
    port, rest = take(rest, "--port")
    rate, rest = take(rest, "--rate")
    batch, rest = take(rest, "--max_batch_size")
    wait, rest = take(rest, "--batch_timeout")
    days, rest = take(rest, "--keep_days")
    host = _LOOPBACK if host in (None, "localhost") else host
    if host not in _HOSTS:
        raise UsageError(f"--host {host} is none of {', '.join(_HOSTS)}; choose one of them")
    token = os.environ.get(TOKEN)
    if token is None and host != _LOOPBACK:
        raise UsageError(
            f"--host {host} lets other machines ask, so clients must show a token: set the "
            f"environment variable {TOKEN}, or leave --host out"
        )
    if token is not None and (not token.isascii() or not token.isprintable() or len(token) < 16):
        raise UsageError(
            f"the token in {TOKEN} must be 16 or more printable ASCII characters, such as "
            "openssl rand -hex 16 prints"
        )
    options = {
        "host": host,
        "port": int(_number("--port", port or "8000", 1024, 65535, whole=True)),
        "token": token,
        "rate": None if host == _LOOPBACK else _RATE,
    }
    if rate is not None:
        options["rate"] = _number("--rate", rate, 0.01, 1e6)
    if batch is not None:
        options["max_batch_size"] = int(_number("--max_batch_size", batch, 1, 4096, whole=True))
    if wait is not None:
        options["batch_timeout"] = _number("--batch_timeout", wait, 0, 1)
    if days is not None:
        options["keep_days"] = _number("--keep_days", days, 0.01, 36500)
    return options, rest


def _number(name: str, text: str, low: float, high: float, *, whole: bool = False) -> float:
    try:
        number = float(int(text) if whole else text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{name} {text} must be {kind} from {low:g} to {high:g}")
    return number


def _champion(directory: Path) -> int:
    from lightning_evolve.evolution.journal import Journal
    from lightning_evolve.evolution.state import JOURNAL

    if not directory.is_dir():
        raise UsageError(f"there is no run {directory}; name the directory of one of evolve")
    with closing(Journal(directory / JOURNAL)) as journal:
        champion = journal.champion()
    if champion is None or champion.model is None:
        raise UsageError(
            f"{directory} has no champion yet; found one by: "
            f"lightning-evolve evolve --run_dir {directory} --config FILE"
        )
    return champion.number


def _processing(directory: Path) -> dict[str, Any]:
    """What the run's configuration says of new classes, of private data and of whom to trust."""
    _, config = read_mapping(
        directory / CONFIG,
        kind="configuration of the run",
        remedy="restore it from a copy",
        keys="processing",
    )
    found = config.get("processing") or {}
    return {
        "new_classes": found.get("new_classes", "admit") == "admit",
        "redact": found.get("redact", True) is not False,
        "trust": config.get("trust") or {},
    }


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"--port {port} cannot be listened on ({error.strerror}); give another --port"
            ) from error
