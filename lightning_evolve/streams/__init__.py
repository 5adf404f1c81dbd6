"""Streams: LightningDataModules that give tasks in a reproducible order."""

from lightning_evolve.streams.base import Stream as Stream
from lightning_evolve.streams.batches import BatchStream as BatchStream
from lightning_evolve.streams.drift import DriftStream as DriftStream
from lightning_evolve.streams.episodes import EpisodeStream as EpisodeStream
from lightning_evolve.streams.mixture import MixtureStream as MixtureStream

__all__ = ["BatchStream", "DriftStream", "EpisodeStream", "MixtureStream", "Stream"]
