from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pytest


def _oracle() -> Path | None:
    # A folder of that name, such as the one with our files, would be found as well, without origin.
    spec = importlib.util.find_spec("sweeps")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@pytest.fixture(scope="session")
def wandb_sweeps() -> Any:
    """W&B's own implementation of sweeps, to compare with."""
    if _oracle() is None:
        pytest.skip("W&B's package is absent: pip install --no-deps sweeps")
    with warnings.catch_warnings():
        # It is written for an older pydantic.
        warnings.simplefilter("ignore")
        for module in ("params", "hyperband_stopping"):
            importlib.import_module(f"sweeps.{module}")
    return importlib.import_module("sweeps")


@pytest.fixture(scope="session")
def wandb_schema() -> dict[str, Any]:
    """The JSON schema of sweep files, as W&B has it."""
    folder = _oracle()
    if folder is None:
        pytest.skip("W&B's package is absent: pip install --no-deps sweeps")
    return json.loads((folder / "config" / "schema.json").read_text(encoding="utf-8"))
