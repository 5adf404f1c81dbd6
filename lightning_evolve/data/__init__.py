"""Data: sources, cleaning, encoding and tasks; nothing here knows Lightning."""

from lightning_evolve.data.encoders import CheckpointTokenizer as CheckpointTokenizer
from lightning_evolve.data.encoders import Encoder as Encoder
from lightning_evolve.data.encoders import FrozenFeatures as FrozenFeatures
from lightning_evolve.data.encoders import LatentWords as LatentWords
from lightning_evolve.data.encoders import NGrams as NGrams
from lightning_evolve.data.encoders import Pixels as Pixels
from lightning_evolve.data.encoders import Words as Words
from lightning_evolve.data.rows import Rows as Rows
from lightning_evolve.data.sources import load as load

__all__ = [
    "CheckpointTokenizer",
    "Encoder",
    "FrozenFeatures",
    "LatentWords",
    "NGrams",
    "Pixels",
    "Rows",
    "Words",
    "load",
]
