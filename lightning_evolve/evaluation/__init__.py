"""Measuring an update rule against tuned rivals and the no-learning floor."""

from lightning_evolve.evaluation.comparison import Comparison, compare_on_tasks
from lightning_evolve.evaluation.curves import Curves, adaptation_curves
from lightning_evolve.evaluation.floor import nearest_centroid
from lightning_evolve.evaluation.rivals import RIVALS, tuned_rivals
from lightning_evolve.evaluation.statistics import interval, steps_to_target
from lightning_evolve.evaluation.tuning import tune

__all__ = [
    "RIVALS",
    "Comparison",
    "Curves",
    "adaptation_curves",
    "compare_on_tasks",
    "interval",
    "nearest_centroid",
    "steps_to_target",
    "tune",
    "tuned_rivals",
]
