"""What happens beside training: progress, metrics, checkpoints and predictions."""

from lightning_evolve.callbacks.checkpoints import AtomicCheckpointIO as AtomicCheckpointIO
from lightning_evolve.callbacks.checkpoints import Checkpoints as Checkpoints
from lightning_evolve.callbacks.comparison import Comparison as Comparison
from lightning_evolve.callbacks.metrics import Metrics as Metrics
from lightning_evolve.callbacks.predictions import PredictionWriter as PredictionWriter
from lightning_evolve.callbacks.progress import RichProgress as RichProgress

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "Comparison",
    "Metrics",
    "PredictionWriter",
    "RichProgress",
]
