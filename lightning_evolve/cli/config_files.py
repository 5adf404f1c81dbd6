"""A look at the config files before Lightning is imported, so that mistakes are told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_evolve.errors import UsageError
from lightning_evolve.yaml_files import read_mapping


def check_config(name: str) -> None:
    """Refuses a config file that cannot be read, or that sets what is set in another way.

    Args:
        name: of the file; a URL is left to the parser.

    Raises:
        UsageError: naming the file and what is wrong with it.
    """
    content = check_yaml(name, keys="model, data and trainer")
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


def check_yaml(name: str, *, keys: str = "sources, pretrained and training") -> dict[str, Any]:
    """Refuses a config file that cannot be read.

    Args:
        name: of the file; a URL is left to the parser.
        keys: which it has, for the remedy.

    Returns:
        What is in it; nothing for a URL.

    Raises:
        UsageError: naming the file and what is wrong with it.
    """
    if "://" in name:
        return {}
    _, content = read_mapping(
        Path(name), kind="config file", remedy="give --config another file", keys=keys
    )
    return content
