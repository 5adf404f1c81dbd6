"""Writing files that are either there and complete or not there, and never over another one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the name of a temporary file that becomes ``path`` when the block ends well.

    Args:
        path: the file to write; its folder exists.

    Yields:
        A temporary file in the same folder, so that the renaming is atomic.
    """
    # The suffix stays, because some writers go by it; the dot hides it from a search for *.ckpt.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner can read; these are ordinary files.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file in one piece.

    Args:
        path: the file; one that exists is replaced.
        content: what to write; numbers that are not finite are refused, as JSON has none.

    Raises:
        ValueError: for a number that is not finite.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def free(path: Path) -> Path:
    """Returns the path if nothing has that name, else the first free of ``name-2``, ``name-3``...

    Args:
        path: the wanted name of a file.

    Example:
        >>> free(Path("no/such/folder/test.json")).name
        'test.json'
    """
    if not path.exists():
        return path
    others = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return next(other for other in others if not other.exists())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
