"""Estimators of the gradient of the reward by phi: one a file, each a pure function."""

from lightning_evolve.estimators.actor_critic import ActorCritic, actor_critic
from lightning_evolve.estimators.base import Episode, Estimate, Estimator
from lightning_evolve.estimators.evolution_strategies import (
    EvolutionStrategies,
    evolution_strategies,
)
from lightning_evolve.estimators.first_order import FirstOrder, first_order
from lightning_evolve.estimators.implicit import Implicit, implicit
from lightning_evolve.estimators.memory import Memory
from lightning_evolve.estimators.persistent_es import PersistentES, persistent_es
from lightning_evolve.estimators.reinforce import Reinforce, reinforce
from lightning_evolve.estimators.reptile import Reptile, reptile
from lightning_evolve.estimators.unrolled import Unrolled, unrolled

__all__ = [
    "ActorCritic",
    "Episode",
    "Estimate",
    "Estimator",
    "EvolutionStrategies",
    "FirstOrder",
    "Implicit",
    "Memory",
    "PersistentES",
    "Reinforce",
    "Reptile",
    "Unrolled",
    "actor_critic",
    "evolution_strategies",
    "first_order",
    "implicit",
    "persistent_es",
    "reinforce",
    "reptile",
    "unrolled",
]
