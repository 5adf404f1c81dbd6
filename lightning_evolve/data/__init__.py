"""Data: sources, cleaning, encoding and tasks; nothing here knows Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_evolve.data.encoders import CheckpointTokenizer as CheckpointTokenizer
    from lightning_evolve.data.encoders import Encoder as Encoder
    from lightning_evolve.data.encoders import FrozenFeatures as FrozenFeatures
    from lightning_evolve.data.encoders import LatentWords as LatentWords
    from lightning_evolve.data.encoders import NGrams as NGrams
    from lightning_evolve.data.encoders import Pixels as Pixels
    from lightning_evolve.data.encoders import Words as Words
    from lightning_evolve.data.rows import Rows as Rows
    from lightning_evolve.data.sources import load as load

_HOME = {
    "CheckpointTokenizer": "encoders",
    "Encoder": "encoders",
    "FrozenFeatures": "encoders",
    "LatentWords": "encoders",
    "NGrams": "encoders",
    "Pixels": "encoders",
    "Rows": "rows",
    "Words": "encoders",
    "load": "sources",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    # Reading and cleaning texts needs no torch: a process that only does that starts at once.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
