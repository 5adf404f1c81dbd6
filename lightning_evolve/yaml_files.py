"""Reading the YAML files that users write, with what is wrong with one told in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_evolve.errors import UsageError


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See :class:`yaml.SafeLoader`."""
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} is there twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, *, kind: str, remedy: str, keys: str) -> tuple[str, dict[str, Any]]:
    """Reads a YAML file that holds keys.

    Args:
        path: the file.
        kind: what the user calls it, such as ``"config file"``.
        remedy: what to do about one that cannot be read.
        keys: some of those that it must hold, in words.

    Returns:
        Its text, and what it holds.

    Raises:
        UsageError: naming the file and what is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _Loader)  # noqa: S506  # a safe loader
    except OSError as error:
        raise UsageError(
            f"cannot read the {kind} {path}: {(error.strerror or str(error)).lower()}; {remedy}"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 (byte {error.start}); save it in that encoding"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{path} is not valid YAML:{where} {what}") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise UsageError(f"{path} is {found}; it must hold keys such as {keys}")
    return text, content
