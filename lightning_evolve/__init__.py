"""lightning_evolve: classifiers that keep improving themselves under a learned update rule."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightning_evolve.errors import UsageError as UsageError
    from lightning_evolve.inner_loop import adapt as adapt
    from lightning_evolve.modules import Classifier as Classifier
    from lightning_evolve.modules import EvolvingClassifier as EvolvingClassifier
    from lightning_evolve.modules import EvolvingRule as EvolvingRule
    from lightning_evolve.optim import LearnedOptimizer as LearnedOptimizer
    from lightning_evolve.tasks import Batch as Batch
    from lightning_evolve.tasks import DataSpec as DataSpec
    from lightning_evolve.tasks import Task as Task

_HOME = {
    "Batch": "tasks",
    "Classifier": "modules",
    "DataSpec": "tasks",
    "EvolvingClassifier": "modules",
    "EvolvingRule": "modules",
    "LearnedOptimizer": "optim",
    "Task": "tasks",
    "UsageError": "errors",
    "adapt": "inner_loop",
}
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    # Importing torch and Lightning takes seconds; `--help` must not pay for it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
