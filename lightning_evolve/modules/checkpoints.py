"""Refusing checkpoints that are not those of the configured model."""

from __future__ import annotations

from typing import Any

from lightning_evolve.errors import UsageError
from lightning_evolve.tasks import DataSpec


def saved_entry(checkpoint: dict[str, Any], *needed: str) -> dict[str, Any]:
    """Returns what a module of ours added to a checkpoint.

    Args:
        checkpoint: as loaded.
        needed: keys that the entry must have.

    Raises:
        UsageError: if the checkpoint is not of the kind of module that is configured.
    """
    entry: dict[str, Any] | None = checkpoint.get("lightning_evolve")
    if entry is None or any(key not in entry for key in needed):
        raise UsageError(
            "the checkpoint was written by another kind of model; "
            "use the config.yaml of the checkpoint's run"
        )
    return entry


def check_same_tensors(ours: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuses a checkpoint whose tensors are not those of the configured model.

    Args:
        ours: state_dict of the model.
        saved: state_dict in the checkpoint.

    Raises:
        UsageError: naming the first tensor that differs.
    """
    for name in [*saved, *ours]:
        here = tuple(ours[name].shape) if name in ours else "absent"
        there = tuple(saved[name].shape) if name in saved else "absent"
        if here != there:
            raise UsageError(
                f"the checkpoint is of another model: {name} is {there} there and {here} in the "
                "configuration; use the config.yaml of the checkpoint's run"
            )


def restored_spec(saved: dict[str, Any]) -> DataSpec:
    """Returns what the data looked like.

    Args:
        saved: the fields of the spec.
    """
    families = {name: DataSpec(**spec) for name, spec in saved.get("families", {}).items()}
    return DataSpec(**{**saved, "families": families})
