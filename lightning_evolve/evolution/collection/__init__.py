"""Collection: from folders, datasets, plans and corrections to records, each ingested once.

A source is read in chunks, and the records of a chunk, its bad rows and how far the source has
been read are one transaction: a kill loses nothing and repeats nothing. What is read again all the
same (a file that has grown, the same text from two sources) is the same record by its content.
"""

from lightning_evolve.evolution.collection.base import Bad, Read, Source
from lightning_evolve.evolution.collection.corrections import Feedback, import_files
from lightning_evolve.evolution.collection.dataset import Dataset
from lightning_evolve.evolution.collection.ingestion import Collected, collect
from lightning_evolve.evolution.collection.planned import Phase, Planned
from lightning_evolve.evolution.collection.watched_folder import WatchedFolder

__all__ = [
    "Bad",
    "Collected",
    "Dataset",
    "Feedback",
    "Phase",
    "Planned",
    "Read",
    "Source",
    "WatchedFolder",
    "collect",
    "import_files",
]
