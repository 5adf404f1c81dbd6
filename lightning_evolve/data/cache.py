"""A disk cache: what takes long to make is made once and found by a digest of what it depends on.

An entry is one safetensors file, tensors and JSON; nothing in it is unpickled. Entries are written
to a temporary name and renamed, so that a killed process leaves no half of one, and carry a digest
of their content, so that a damaged one is made anew.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.files import replacing
from lightning_evolve.tasks import Tensors


class Entry(NamedTuple):
    """What one entry holds.

    Args:
        tensors: named tensors; may be empty.
        facts: anything else, as JSON knows it.
    """

    tensors: Tensors
    facts: dict[str, Any]


class Cache:
    """Entries in a folder, one file each.

    Args:
        folder: where they are; ``lightning_evolve`` in ``$XDG_CACHE_HOME`` or else ``~/.cache``
            by default. It is made when the first entry is written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder = (
            Path(os.path.expanduser(folder)) if folder else Path(home) / "lightning_evolve"
        )

    def get(self, name: str, key: dict[str, Any], make: Callable[[], Entry]) -> Entry:
        """The entry of this name and key, from the disk or else made now.

        Args:
            name: start of the file's name, for people who look into the folder.
            key: all that the entry depends on, as JSON knows it.
            make: makes the entry when it is not there or damaged.

        Raises:
            UsageError: the folder cannot be written.
        """
        text = json.dumps(key, sort_keys=True).encode()
        path = (
            self.folder / f"{name}-{hashlib.blake2b(text, digest_size=16).hexdigest()}.safetensors"
        )
        entry = _read(path)
        if entry is None:
            entry = make()
            self._write(path, entry)
        return entry

    def _write(self, path: Path, entry: Entry) -> None:
        facts = json.dumps(entry.facts)
        metadata = {"facts": facts, "digest": _digest(entry.tensors, facts)}
        content = safetensors.torch.save(entry.tensors, metadata)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise UsageError(
                f"cannot write to the cache folder {str(self.folder)!r} ({error.strerror}): "
                "name another one with cache_dir"
            ) from error


def code_digest(file: str) -> str:
    """Digest of a source file, so that what other code has made is not taken for its own.

    Args:
        file: path of the file.
    """
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()


def class_digest(made_by: type) -> str | None:
    """Digest of a class's source file; None where there is none, as of a class that was typed in.

    Args:
        made_by: the class.
    """
    try:
        return code_digest(inspect.getfile(made_by))
    except (OSError, TypeError):
        return None


def _read(path: Path) -> Entry | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["digest"] != _digest(tensors, metadata["facts"]):
            return None
        return Entry(tensors, json.loads(metadata["facts"]))
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None  # not there, or damaged: it is made anew and written over


def _digest(tensors: Tensors, facts: str) -> str:
    content = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(tensors):
        content.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        content.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return content.hexdigest()
