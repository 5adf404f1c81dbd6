"""Where a run writes and what it loads: a directory of its own, which nothing else overwrites."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from lightning_evolve.errors import UsageError

RUNS = Path("runs")
CONFIG = "config.yaml"
_LOCK = ".lock"
# Processes that Lightning starts inherit the choice of the first one.
_VARIABLE = "LIGHTNING_EVOLVE_RUN_DIR"


@dataclass(frozen=True)
class RunDirectory:
    """A run's directory, and the checkpoint that it starts from.

    Args:
        path: the directory.
        checkpoint: file to load, if any.
        created: the directory or its first parent that this process had to make, if any.
    """

    path: Path
    checkpoint: Path | None = None
    created: Path | None = None

    def discard(self) -> None:
        """Removes the directory if this process made it and no training has begun in it."""
        if self.created is None or {p.name for p in self.path.iterdir()} - {"wandb", _LOCK}:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        made = [p for p in self.path.parents if p == self.created or self.created in p.parents]
        for parent in made:
            # Another run may have moved in meanwhile.
            with suppress(OSError):
                parent.rmdir()


def inherited() -> Path | None:
    """Returns the directory that the process which started this one has chosen."""
    value = os.environ.get(_VARIABLE)
    return Path(value) if value else None


def bequeath(path: Path | None) -> None:
    """Lets the processes that this one starts write to the same directory.

    Args:
        path: the run's directory, ``None`` when the run is over.
    """
    if path is None:
        os.environ.pop(_VARIABLE, None)
    else:
        os.environ[_VARIABLE] = str(path)


def hold(path: Path) -> BaseFileLock | None:
    """Takes a run's directory for this process until it ends, however it ends.

    Args:
        path: the run's directory.

    Returns:
        The lock; ``None`` on a file system that has none.

    Raises:
        UsageError: if another process trains in that directory.
    """
    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"another process trains in {path}; wait for it, or choose another --run_dir"
        ) from error
    except NotImplementedError:
        return None
    return lock


def locked(path: Path) -> bool:
    """Returns whether a process trains in a run's directory.

    Args:
        path: the run's directory.
    """
    if not (path / _LOCK).exists():
        return False
    try:
        lock = hold(path)
    except UsageError:
        return True
    if lock:
        lock.release()
    return False


def for_fit(
    run_dir: str | None, name: str, ckpt_path: str | None, *, first: bool = True
) -> RunDirectory:
    """Chooses and makes the directory of a training run.

    Args:
        run_dir: as the user named it.
        name: of the run, for the default ``runs/NAME``.
        ckpt_path: ``None``, ``"last"`` to go on in an existing directory, or a file.
        first: whether this is the process that writes; others make and check nothing.

    Raises:
        UsageError: if the directory is taken or cannot be written to, or the checkpoint is bad.
    """
    if ckpt_path == "best":
        raise UsageError(
            "fit cannot go on from 'best'; give --ckpt_path last, or the checkpoint's file to "
            "start a new run from it"
        )
    if ckpt_path == "last":
        path = Path(run_dir) if run_dir else newest(name)
        path = path or RUNS / name
        checkpoint = _last(path)
        return RunDirectory(path, checkpoint, _make(path) if first else None)
    checkpoint = None
    if ckpt_path is not None:
        checkpoint = Path(ckpt_path)
        check(checkpoint)
        if run_dir and (owner := run_of(checkpoint)) and owner.resolve() == Path(run_dir).resolve():
            return RunDirectory(Path(run_dir), checkpoint)
    if not first:
        return RunDirectory(Path(run_dir) if run_dir else RUNS / name, checkpoint)
    if run_dir:
        path = Path(run_dir)
        if path.is_dir() and any(p.name != _LOCK for p in path.iterdir()):
            raise UsageError(
                f"{path} exists and is not empty; choose another --run_dir, or go on with that "
                "run by --ckpt_path last"
            )
        return RunDirectory(path, checkpoint, _make(path))
    # Making the directory takes the name, also where two runs start at the same moment.
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    for path in (RUNS / n for n in names):
        if not path.exists() and (created := _make(path)):
            return RunDirectory(path, checkpoint, created)
    raise AssertionError("numbers do not end")


def for_evaluation(
    run_dir: str | None, name: str, ckpt_path: str | None, *, first: bool = True
) -> RunDirectory:
    """Chooses the directory and the checkpoint of ``validate``, ``test`` or ``predict``.

    Args:
        run_dir: as the user named it.
        name: of the run, for the default: the newest of ``runs/NAME``, ``runs/NAME-2``...
        ckpt_path: ``"best"`` (also if ``None``), ``"last"``, or a file, whose run it is then.
        first: whether this is the process that writes.

    Raises:
        UsageError: if there is no such run or checkpoint.
    """
    if ckpt_path not in (None, "best", "last"):
        assert ckpt_path is not None
        checkpoint = Path(ckpt_path)
        check(checkpoint)
        path = Path(run_dir) if run_dir else run_of(checkpoint) or checkpoint.parent
        return RunDirectory(path, checkpoint, _make(path) if first else None)
    found = Path(run_dir) if run_dir else newest(name)
    if found is None or not found.is_dir():
        raise UsageError(
            f"there is no run {found or RUNS / name}; fit it first, or name a run by --run_dir or "
            "a checkpoint's file by --ckpt_path"
        )
    wanted = ["last.ckpt"] if ckpt_path == "last" else ["best.ckpt", "last.ckpt"]
    files = [file for n in wanted if (file := found / "checkpoints" / n).exists()]
    if not files:
        raise UsageError(
            f"{found} has no checkpoint {' or '.join(wanted)}; "
            f"go on training by: lightning-evolve fit --run_dir {found} --ckpt_path last"
        )
    check(files[0])
    return RunDirectory(found, files[0], _make(found) if first else None)


def newest(name: str) -> Path | None:
    """Returns the last of ``runs/NAME``, ``runs/NAME-2`` and so on that exists.

    Args:
        name: of the run.
    """
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    found = [
        (int(match[1] or 1), path)
        for path in (RUNS.iterdir() if RUNS.is_dir() else [])
        if path.is_dir() and (match := pattern.fullmatch(path.name))
    ]
    return max(found)[1] if found else None


def run_of(checkpoint: Path) -> Path | None:
    """Returns the directory of the run that a checkpoint belongs to, if it is in one.

    Args:
        checkpoint: file.
    """
    run = checkpoint.parent.parent
    return run if checkpoint.parent.name == "checkpoints" and (run / CONFIG).exists() else None


def config_of(run: Path) -> Path | None:
    """Returns the resolved configuration of a run, the newest if it went on under other options.

    Args:
        run: directory of the run.
    """
    path, others = run / CONFIG, (run / f"config-{number}.yaml" for number in count(2))
    if not path.exists():
        return None
    return [path, *takewhile(Path.exists, others)][-1]


def check(checkpoint: Path) -> None:
    """Refuses a file that is not a complete checkpoint of a training run.

    Args:
        checkpoint: file; nothing in it is executed.

    Raises:
        UsageError: naming the file, what is wrong with it and the remedy.
    """
    import torch

    remedy = "give --ckpt_path another file"
    if checkpoint.name == "last.ckpt" and (checkpoint.parent / "best.ckpt").exists():
        remedy += f", such as {checkpoint.parent / 'best.ckpt'}"
    if not checkpoint.is_file():
        raise UsageError(f"there is no checkpoint {checkpoint}; {remedy}, or best or last")
    # A checkpoint is a zip archive, whose directory is written last.
    if not zipfile.is_zipfile(checkpoint):
        raise UsageError(f"{checkpoint} is incomplete or no checkpoint; {remedy}")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UsageError(f"{checkpoint} holds other things than tensors; {remedy}") from error
    if not isinstance(content, dict) or "state_dict" not in content or "loops" not in content:
        raise UsageError(f"{checkpoint} is no checkpoint of a training run; {remedy}")


def _last(path: Path) -> Path | None:
    # A run that was killed at once may have left hidden temporary files and W&B's folder.
    entries = [p.name for p in path.iterdir()] if path.is_dir() else []
    foreign = [name for name in entries if name != "wandb" and not name.startswith(".")]
    if foreign and CONFIG not in entries:
        raise UsageError(
            f"{path} holds {foreign[0]} and no {CONFIG}, so it is not a run; "
            "choose another --run_dir"
        )
    from lightning_evolve.evolution.state import JOURNAL

    if (path / JOURNAL).exists():
        raise UsageError(
            f"{path} is a run of evolve; go on with it by evolve --run_dir, or choose another"
        )
    checkpoint = path / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        return None
    check(checkpoint)
    return checkpoint


def _make(path: Path) -> Path | None:
    """Makes a directory, or tries that the one that is there can be written to.

    Returns:
        The directory or its first parent that was not there; ``None`` if it was.
    """
    created = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            if not path.is_dir():
                raise
            with tempfile.TemporaryFile(dir=path):
                return None
    except OSError as error:
        raise UsageError(
            f"cannot write to {path}: {(error.strerror or str(error)).lower()}; "
            "choose another --run_dir"
        ) from error
    return created[-1] if created else path
