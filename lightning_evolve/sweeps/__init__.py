"""Sweeps: choosing settings by trials, from files in the schema of Weights & Biases."""

from lightning_evolve.sweeps.command import expand as expand
from lightning_evolve.sweeps.distributions import Distribution as Distribution
from lightning_evolve.sweeps.hyperband import Hyperband as Hyperband
from lightning_evolve.sweeps.search import Search as Search
from lightning_evolve.sweeps.search import search_for as search_for
from lightning_evolve.sweeps.specification import Metric as Metric
from lightning_evolve.sweeps.specification import Sweep as Sweep
from lightning_evolve.sweeps.specification import load as load
from lightning_evolve.sweeps.trials import Trial as Trial

__all__ = [
    "Distribution",
    "Hyperband",
    "Metric",
    "Search",
    "Sweep",
    "Trial",
    "expand",
    "load",
    "search_for",
]
