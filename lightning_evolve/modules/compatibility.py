"""Refusing Trainers that cannot train an EvolvingClassifier, before anything is built."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import Estimator

_WORKING = ("64-true", "32-true", "bf16-mixed")
_FAULTS = {
    "16-mixed": "the scaling that float16 needs never reaches the inner gradients, so that small "
    "ones become 0",
    "16-true": "small inner gradients become 0 in float16",
    "bf16-true": "the 8 bits of a bfloat16 theta lose most inner steps",
}

_SHARDED = (FSDPStrategy, ModelParallelStrategy)


def check_trainer(trainer: L.Trainer, estimator: Estimator) -> None:
    """Refuses a Trainer before anything is built.

    Args:
        trainer: as the user configured it.
        estimator: how the meta-gradient is got.

    Raises:
        UsageError: naming what would work instead.
    """
    check_precision(str(trainer.precision))
    check_strategy(trainer.strategy, estimator)
    if trainer.state.fn == "fit":
        check_optimization(trainer)


def check_precision(precision: str) -> None:
    """Refuses numbers in which the inner loop does not work.

    Args:
        precision: Lightning's name for it.

    Raises:
        UsageError: if it is another than 64-true, 32-true or bf16-mixed.

    Example:
        >>> check_precision("bf16-mixed")
    """
    if precision not in _WORKING:
        fault = _FAULTS.get(precision, "the inner loop was never tried in it")
        raise UsageError(
            f"precision is {precision!r} and cannot train an EvolvingClassifier: {fault}; "
            "give --trainer.precision bf16-mixed, 32-true or 64-true"
        )


def check_strategy(strategy: Strategy, estimator: Estimator) -> None:
    """Refuses strategies that an inner loop cannot run under.

    Args:
        strategy: how processes share the work.
        estimator: how the meta-gradient is got.

    Raises:
        UsageError: if it leaves each process only a part of theta, or owns the optimizers.
    """
    name = type(strategy).__name__
    if isinstance(strategy, DeepSpeedStrategy):
        raise UsageError(
            f"{name} owns the optimizers, of which EvolvingClassifier steps two by itself; "
            "give --trainer.strategy ddp"
        )
    if isinstance(strategy, _SHARDED):
        fault = (
            f"{type(estimator).__name__} takes second derivatives, which do not exist there"
            if estimator.second_order
            else "the inner loop needs all of it, under other values than the module's own"
        )
        raise UsageError(
            f"{name} leaves each process a part of theta, and {fault}; give --trainer.strategy "
            "ddp, and to save memory the estimator FirstOrder or EvolutionStrategies, a smaller "
            "--model.adapt or --trainer.precision bf16-mixed"
        )


def check_optimization(trainer: L.Trainer) -> None:
    """Refuses settings of automatic optimization, in the place of which there are our own.

    Args:
        trainer: as the user configured it.

    Raises:
        UsageError: naming our own option.
    """
    if trainer.gradient_clip_val:
        raise UsageError(
            f"gradient_clip_val is {trainer.gradient_clip_val} and EvolvingClassifier clips the "
            "meta-gradient by itself; give --model.clip instead"
        )
    accumulated = trainer.accumulate_grad_batches
    if accumulated != 1:
        raise UsageError(
            f"accumulate_grad_batches is {accumulated} and EvolvingClassifier averages over the "
            f"tasks of a step; give {accumulated} times the --data.tasks_per_step instead"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        if isinstance(callback, GradientAccumulationScheduler):
            raise UsageError(
                f"{name} changes automatic optimization, which EvolvingClassifier does without; "
                "leave it out and give a larger --data.tasks_per_step"
            )
        if isinstance(callback, StochasticWeightAveraging):
            raise UsageError(
                f"{name} averages under one optimizer and EvolvingClassifier has two; "
                "leave it out and give --model.beta_schedule cosine"
            )
    if getattr(trainer.lightning_module, "_compiler_ctx", None) is not None:
        raise UsageError(
            "torch.compile of an EvolvingClassifier cannot trace its outer step; "
            "give --model.compile true instead, which compiles the learner"
        )
