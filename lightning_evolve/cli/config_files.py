"""A look at the config files before Lightning is imported, so that mistakes are told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_evolve.errors import UsageError


def check_config(name: str) -> None:
    """Refuses a config file that cannot be read, or that sets what is set in another way.

    Args:
        name: of the file; a URL is left to the parser.

    Raises:
        UsageError: naming the file and what is wrong with it.
    """
    if "://" in name:
        return
    content = _read(Path(name))
    mode = content.get("wandb", {})
    if not isinstance(mode, dict):
        # The parser would take it for the name of a file.
        mode = "off" if mode is False else mode
        raise UsageError(f"{name}: wandb takes keys; write wandb: {{mode: {mode}}}")
    for part in ("data", "model"):
        section = content.get(part)
        options = section.get("init_args") if isinstance(section, dict) else None
        if isinstance(options, dict) and "seed" in options:
            raise UsageError(
                f"{name} sets the seed of {part}; set seed_everything (or --seed) for all instead"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read the config file {path}: {(error.strerror or str(error)).lower()}; "
            "give --config another file"
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
        raise UsageError(f"{path} is {found}; it must hold keys such as model, data and trainer")
    return content
