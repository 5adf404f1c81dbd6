"""Artifacts: files that are named by their content, written once and never changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lightning_evolve.errors import UsageError
from lightning_evolve.files import replacing


class Artifacts:
    """A folder of immutable files, each named by the SHA-256 of what is in it.

    What is stored twice is there once; what was damaged is noticed when it is read.

    Args:
        folder: where they are; made when the first is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put_tensors(self, tensors: Mapping[str, Tensor]) -> str:
        """Stores named tensors as safetensors.

        Args:
            tensors: by name.

        Returns:
            The artifact's name.

        Raises:
            UsageError: the folder cannot be written, or the disk is full.
        """
        # In one order, so that the same tensors are the same bytes.
        return self._put(
            save_tensors({n: tensors[n].detach().cpu().contiguous() for n in sorted(tensors)}),
            ".safetensors",
        )

    def put_json(self, content: Any) -> str:
        """Stores what JSON knows.

        Args:
            content: numbers that are not finite are refused.

        Returns:
            The artifact's name.

        Raises:
            UsageError: the folder cannot be written, or the disk is full.
        """
        text = json.dumps(content, sort_keys=True, allow_nan=False, ensure_ascii=False)
        return self._put(text.encode(), ".json")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Reads named tensors.

        Args:
            name: of the artifact.

        Raises:
            UsageError: there is no such artifact, or it is damaged.
        """
        return load_tensors(self._get(name))

    def json(self, name: str) -> Any:
        """Reads what was stored as JSON.

        Args:
            name: of the artifact.

        Raises:
            UsageError: there is no such artifact, or it is damaged.
        """
        return json.loads(self._get(name))

    def prune(self, kept: Iterable[str]) -> int:
        """Removes all artifacts but some, and what a killed process has left unfinished.

        Args:
            kept: names of those that stay.

        Returns:
            How many were removed.
        """
        stay = set(kept)
        gone = [path for path in self.folder.glob("??/*") if path.name not in stay]
        for path in [*gone, *self.folder.glob("??/.*")]:
            path.unlink(missing_ok=True)
        return len(gone)

    def path(self, name: str) -> Path:
        """Where an artifact lies, by its name."""
        return self.folder / name[:2] / name

    def _put(self, content: bytes, suffix: str) -> str:
        name = hashlib.sha256(content).hexdigest() + suffix
        path = self.path(name)
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as temporary, temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # it must outlive the journal's entry that names it
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise UsageError(
                    f"cannot write to {self.folder} ({reason}): free some space or mend its "
                    "permissions, and start again; nothing that was acknowledged is lost"
                ) from error
        return name

    def _get(self, name: str) -> bytes:
        try:
            content = self.path(name).read_bytes()
        except OSError as error:
            raise UsageError(
                f"artifact {name} cannot be read ({error.strerror}): roll back to a champion "
                "whose artifacts are there, or restore the folder from a copy"
            ) from error
        if hashlib.sha256(content).hexdigest() != name.partition(".")[0]:
            raise UsageError(
                f"artifact {self.path(name)} is damaged (its content does not match its name): "
                "restore it from a copy, or roll back to another champion"
            )
        return content


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Returns a digest of named tensors, whatever their order.

    >>> digest_of({"a": torch.ones(2)}) == digest_of({"a": torch.ones(2)})
    True
    """
    content = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.dim() else b"")
        content.update(str(tensor.item()).encode() if not tensor.dim() else b"")
    return content.hexdigest()
