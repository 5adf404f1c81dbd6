"""Update rules g_phi, one a file; hand-designed and learned ones stand in the same slot."""

from lightning_evolve.meta_learners.adam import Adam, AdamW
from lightning_evolve.meta_learners.base import MetaLearner, MetaLearnerFactory, State
from lightning_evolve.meta_learners.controller import Controller
from lightning_evolve.meta_learners.coordinate_lstm import CoordinateLSTM
from lightning_evolve.meta_learners.coordinate_mlp import CoordinateMLP
from lightning_evolve.meta_learners.gains import Gains
from lightning_evolve.meta_learners.linear import Linear
from lightning_evolve.meta_learners.meta_sgd import MetaSGD
from lightning_evolve.meta_learners.muon import Muon
from lightning_evolve.meta_learners.relative_gains import RelativeGains
from lightning_evolve.meta_learners.sgd import SGD, Momentum

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Controller",
    "CoordinateLSTM",
    "CoordinateMLP",
    "Gains",
    "Linear",
    "MetaLearner",
    "MetaLearnerFactory",
    "MetaSGD",
    "Momentum",
    "Muon",
    "RelativeGains",
    "State",
]
