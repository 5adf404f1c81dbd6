"""Beginning where another run has ended."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.learners.base import Learner

_PREFIX = "learner."


def begin_from(learner: Learner, checkpoint: str) -> None:
    """Give a learner the parameters of a run's, all but the head's, which are of its classes.

    Args:
        learner: what to change in place.
        checkpoint: a ``.ckpt`` file of a run.

    Raises:
        UsageError: if there is no such file, it is damaged, or it is of another learner.
    """
    path = Path(os.path.expanduser(checkpoint))
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    except Exception as error:  # each kind of damage has its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UsageError(
            f"checkpoint {checkpoint!r} cannot be loaded: name a .ckpt file in the checkpoints "
            f"folder of a run ({reason})"
        ) from error
    own = {name: p for name, p in learner.named_parameters() if not name.startswith("head.")}
    theirs = {name.removeprefix(_PREFIX): t for name, t in saved.items() if _PREFIX in name}
    for name, p in own.items():
        there = tuple(theirs[name].shape) if name in theirs else "absent"
        if there != tuple(p.shape):
            raise UsageError(
                f"checkpoint {checkpoint!r} is of another learner: {name} is {there} there and "
                f"{tuple(p.shape)} here; give the options of the run that wrote it"
            )
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(theirs[name])
