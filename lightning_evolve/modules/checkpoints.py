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


_WHAT = {"num_classes": "classes of a task", "vocab_size": "token ids", "shape": "rows of shape"}


def check_same_data(ours: DataSpec, saved: DataSpec, source: str | None) -> None:
    """Refuses a checkpoint whose classes or words are not those of the data.

    Tensors of the same shapes would be loaded, and mean something else.

    Args:
        ours: of the data.
        saved: of the checkpoint.
        source: what the data is called.

    Raises:
        UsageError: naming the first difference.
    """
    if ours.class_names and saved.class_names and ours.class_names != saved.class_names:
        new = sorted(set(ours.class_names) - set(saved.class_names))
        gone = sorted(set(saved.class_names) - set(ours.class_names))
        difference = [f"has {new[0]!r}"] * bool(new) + [f"lacks {gone[0]!r}"] * bool(gone)
        raise UsageError(
            f"source {source!r} has other classes than the checkpoint was trained on (it "
            f"{' and '.join(difference)}); give the source of the checkpoint's run, or train anew"
        )
    if ours.encoding and saved.encoding and ours.encoding != saved.encoding:
        raise UsageError(
            f"source {source!r} has other training rows than the checkpoint's run, from which its "
            "encoder learned what stands for what; restore them, or train anew (with an encoder "
            "that does not learn, such as CheckpointTokenizer, if rows will change again)"
        )
    for what in ("num_classes", "vocab_size", "shape"):
        one, other = getattr(ours, what), getattr(saved, what)
        if one != other and not ours.class_names:
            raise UsageError(
                f"source {source!r} has {_WHAT[what]} {one}, and the model was built for {other}; "
                "give the data and options of the model's run, or build another model"
            )
    for name in ours.families.keys() & saved.families.keys():
        check_same_data(ours.families[name], saved.families[name], name)
