"""A small stream and module: real digits, 8x8, an epoch in a fraction of a second."""

from __future__ import annotations

from functools import partial

import lightning as L
import torch

from lightning_evolve.data import Pixels
from lightning_evolve.estimators import Unrolled
from lightning_evolve.learners import CNN
from lightning_evolve.modules import EvolvingClassifier
from lightning_evolve.streams import EpisodeStream


def stream(**options):
    defaults = dict(
        source="digits",
        encoder=Pixels(size=8),
        ways=3,
        shots=2,
        queries=3,
        tasks_per_step=4,
        steps_per_epoch=10,
        val_tasks=3,
        test_tasks=3,
        class_fractions=(0.4, 0.3, 0.3),
    )
    return EpisodeStream(**{**defaults, **options})


def module(cls=EvolvingClassifier, **options):
    defaults = dict(
        learner=partial(CNN, channels=(3, 4)),
        estimator=Unrolled(),
        alpha=0.01,
        beta=0.05,
        steps=2,
    )
    return cls(**{**defaults, **options})


def trainer(folder, **options):
    defaults = dict(
        accelerator="cpu",
        default_root_dir=str(folder),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    return L.Trainer(**{**defaults, **options})


class FlatPixels(Pixels):
    """Feature vectors that need no checkpoint."""

    def encode(self, rows):
        return {"features": super().encode(rows)["images"].flatten(1)}


class Keep(L.Callback):
    """Writes what every process ends on."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        numbers = {name: t.clone() for name, t in pl_module.state_dict().items()}
        state = pl_module.state  # none where each task begins with its own
        for kind, tensors in state.accumulators.items() if state else ():
            numbers |= {f"state.{kind}.{name}": t for name, t in tensors.items()}
        metrics = trainer.callback_metrics
        numbers |= {name: metrics[name] for name in pl_module.METRICS if name in metrics}
        torch.save(numbers, self.folder / f"rank{trainer.global_rank}.pt")


def difference(one, other):
    """Largest absolute difference over all tensors of two runs."""
    assert one.keys() == other.keys()
    return max(
        float((one[k].double() - other[k].double()).abs().max()) for k in one if one[k].numel()
    )


__all__ = ["FlatPixels", "Keep", "difference", "module", "stream", "trainer"]
