"""Writing files that are either there and complete or not there, and never over another one."""

from __future__ import annotations

import json
import os
import secrets
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
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    # Unlike one of tempfile's, readable by whom the user's umask lets read it.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
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
