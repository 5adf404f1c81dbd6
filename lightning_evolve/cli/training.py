"""fit, validate, test and predict: what surrounds Lightning's command line."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb

from filelock import BaseFileLock

from lightning_evolve.cli import run_directory
from lightning_evolve.cli.arguments import check_seeds, config_files, expand, take
from lightning_evolve.cli.config_files import check_config
from lightning_evolve.cli.run_directory import RunDirectory
from lightning_evolve.errors import UsageError

# Lightning's advice that does not apply here, by the beginning of what it says.
_IRRELEVANT = (
    ".*does not have many workers",  # data is in memory
    ".*is smaller than the logging interval",
    ".*ended before the epoch ended and your dataloader is not resumable",  # ours starts at a step
    "Trying to infer the `batch_size`",
    "It is recommended to use `self.log\\(.*sync_dist=True",  # torchmetrics has synchronised it
    "Be aware that when using `ckpt_path`",  # predict needs fewer callbacks than fit
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


# Where Lightning looks at what the Trainer is given.
_OF_THE_TRAINER = (
    "lightning.pytorch.trainer.connectors.",
    "lightning.pytorch.accelerators.",
    "lightning.pytorch.callbacks.early_stopping",
    "lightning.fabric.accelerators.",
    "lightning.fabric.utilities.device_parser",
)
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


@dataclass
class Session:
    """One call of a command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: for the parser, short forms written in full.
        run_dir: as the user named it.
        ckpt_path: as the user named it.
        name: of the run, after the config file.
        run: the directory, once it is chosen.
        lock: on that directory, while a process trains in it.
        wandb: whether this call logs to W&B.
    """

    command: str
    arguments: list[str]
    run_dir: str | None
    ckpt_path: str | None
    name: str
    run: RunDirectory | None = None
    lock: BaseFileLock | None = None
    wandb: bool = False


def run(command: str, arguments: list[str]) -> int:
    """Runs a command of Lightning's.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: of the command.

    Returns:
        Exit code: 0, 2 for what the parser refuses, 130 after Ctrl-C.

    Raises:
        UsageError: for a mistake of the user.
    """
    session = _session(command, arguments)
    check_seeds(session.arguments)
    for name in config_files(session.arguments):
        check_config(name)
    # Read when torch is loaded. Threads that spin while they wait make small learners several
    # times slower as soon as anything else runs on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with quiet():
        # From here on it takes seconds.
        from lightning_evolve.cli.lightning_cli import EvolveCLI

        try:
            EvolveCLI(session)
        except BaseException as error:
            _finish_wandb(session, exit_code=1)
            if session.run is not None:
                session.run.discard()
            if _interrupted(error):
                return _goodbye(session)
            if isinstance(error, SystemExit):
                return error.code if isinstance(error.code, int) else 0
            if mistake := _mistake(error):
                raise mistake from error
            raise
        finally:
            run_directory.bequeath(None)
            if session.lock:
                session.lock.release()
        _finish_wandb(session, exit_code=0)
    return 0


def _finish_wandb(session: Session, exit_code: int) -> None:
    if session.wandb:
        import wandb

        # Lightning leaves it to the end of the process, which knows of no mistake.
        wandb.finish(exit_code=exit_code)


def _session(command: str, arguments: list[str]) -> Session:
    run_dir, rest = take(expand(arguments), "--run_dir")
    # Not left to LightningCLI: with a file it would lay the hyper-parameters of the checkpoint
    # over the options that the user gives.
    ckpt_path, rest = take(rest, "--ckpt_path")
    files = config_files(rest)
    name = Path(files[-1]).stem if files else command
    if not files:
        owner = None if ckpt_path is None else run_directory.run_of(Path(ckpt_path))
        known = owner or (Path(run_dir) if run_dir else None)
        # A run that exists brings its configuration along.
        config = run_directory.config_of(known) if known else None
        if known and config and (command != "fit" or ckpt_path):
            rest, name = [f"--config={config}", *rest], known.name
        elif run_dir and not config and not rest:
            raise UsageError(
                f"there is no run {run_dir}; give --config FILE to begin one, or name one that is"
            )
    return Session(command, rest, run_dir, ckpt_path, name)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides Lightning's notes and advice: what remains on standard error is for the user."""
    # Importing Lightning sets levels and the form of warnings, so it comes first.
    import lightning  # noqa: F401

    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels, form = [logger.level for logger in loggers], warnings.formatwarning
    with warnings.catch_warnings():
        for message in _IRRELEVANT:
            warnings.filterwarnings("ignore", message=message)
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            warnings.formatwarning = one_line
            yield
        finally:
            warnings.formatwarning = form
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Formats a warning as ``warnings.formatwarning`` does, but for the user: what it says."""
    return f"lightning-evolve: warning: {' '.join(str(message).split())}\n"


def _interrupted(error: BaseException) -> bool:
    # Lightning turns Ctrl-C in training into an exit with code 1.
    context = error.__context__ if isinstance(error, SystemExit) else None
    return isinstance(error, KeyboardInterrupt) or isinstance(context, KeyboardInterrupt)


def _goodbye(session: Session) -> int:
    # Lightning has had it ignored while it shut down.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    message = "lightning-evolve: interrupted"
    if session.run and session.command == "fit" and session.run.path.exists():
        command = f"lightning-evolve fit --run_dir {shlex.quote(str(session.run.path))}"
        message += f"; go on by: {command} --ckpt_path last"
    print(message, file=sys.stderr)
    return 130


def _mistake(error: BaseException) -> UsageError | None:
    """Finds the user's mistake behind an error: parsers and frameworks wrap what they catch."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UsageError):
            return cause
        if isinstance(cause, MisconfigurationException) or _of_trainer_settings(cause):
            return UsageError(" ".join(str(cause).split()))
        if isinstance(cause, OSError) and cause.errno in _UNWRITABLE:
            where = f" {cause.filename}" if cause.filename else ""
            return UsageError(
                f"cannot write{where}: {(cause.strerror or str(cause)).lower()}; make room, or "
                "choose another --run_dir"
            )
        if type(cause).__module__.startswith("wandb."):
            said = " ".join(str(cause).split()).rstrip(".")
            return UsageError(f"W&B says: {said}; use --wandb offline")
        cause = cause.__cause__
    return None


def _of_trainer_settings(error: BaseException) -> bool:
    """Whether Lightning refuses an argument of the Trainer by one of Python's own errors."""
    plain = isinstance(error, ValueError | TypeError | RuntimeError | ImportError)
    frames = list(walk_tb(error.__traceback__)) if plain else []
    origin = str(frames[-1][0].f_globals.get("__name__")) if frames else ""
    return origin.startswith(_OF_THE_TRAINER)


def first_process() -> bool:
    """Whether this is the process that writes, of those that train together."""
    names = ["RANK"] if "RANK" in os.environ else ["LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"]
    return all(os.environ.get(name, "0") == "0" for name in names)
