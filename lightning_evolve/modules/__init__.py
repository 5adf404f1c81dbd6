"""LightningModules: plain fine-tuning, and evolution under a meta-learner."""

from lightning_evolve.modules.classifier import Classifier
from lightning_evolve.modules.evolving import EvolvingClassifier

__all__ = ["Classifier", "EvolvingClassifier"]
