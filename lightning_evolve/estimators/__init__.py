"""Estimators of the gradient of the reward by phi: one a file, each a pure function."""

from lightning_evolve.estimators.base import Episode, Estimate, Estimator
from lightning_evolve.estimators.evolution_strategies import (
    EvolutionStrategies,
    evolution_strategies,
)
from lightning_evolve.estimators.first_order import FirstOrder, first_order
from lightning_evolve.estimators.unrolled import Unrolled, unrolled

__all__ = [
    "Episode",
    "Estimate",
    "Estimator",
    "EvolutionStrategies",
    "FirstOrder",
    "Unrolled",
    "evolution_strategies",
    "first_order",
    "unrolled",
]
