"""LightningModules: plain fine-tuning, and evolution under a meta-learner."""

from lightning_evolve.modules.classifier import Classifier
from lightning_evolve.modules.evolving import EvolvingClassifier
from lightning_evolve.modules.evolving_rule import EvolvingRule

__all__ = ["Classifier", "EvolvingClassifier", "EvolvingRule"]
