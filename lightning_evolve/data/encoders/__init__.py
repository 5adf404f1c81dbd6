"""Encoders: rows to tensors, one way a file."""

from lightning_evolve.data.encoders.base import Encoder as Encoder
from lightning_evolve.data.encoders.base import encode as encode
from lightning_evolve.data.encoders.checkpoint_tokenizer import (
    CheckpointTokenizer as CheckpointTokenizer,
)
from lightning_evolve.data.encoders.frozen_features import FrozenFeatures as FrozenFeatures
from lightning_evolve.data.encoders.latent_words import LatentWords as LatentWords
from lightning_evolve.data.encoders.ngrams import NGrams as NGrams
from lightning_evolve.data.encoders.pixels import Pixels as Pixels
from lightning_evolve.data.encoders.words import Words as Words

__all__ = [
    "CheckpointTokenizer",
    "Encoder",
    "FrozenFeatures",
    "LatentWords",
    "NGrams",
    "Pixels",
    "Words",
    "encode",
]
