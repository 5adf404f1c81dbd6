from __future__ import annotations

import json

import pytest

from lightning_evolve.data import Words
from lightning_evolve.streams import BatchStream, DriftStream, EpisodeStream

KINDS = {
    "episodes": (EpisodeStream, {"ways": 3, "shots": 2, "queries": 3, "val_tasks": 5}),
    "batches": (BatchStream, {"batch_size": 5}),
    "drift": (DriftStream, {"ways": 3, "period": 4, "batch_size": 6, "val_experiences": 5}),
}


@pytest.fixture
def write_texts(tmp_path):
    """Writes a file of so many classes with so many texts each."""

    def write(classes=16, each=20, name="data.jsonl"):
        lines = [
            json.dumps({"text": f"topic{c} says {'word ' * (n % 4)}{n}", "label": f"class{c:02}"})
            for c in range(classes)
            for n in range(each)
        ]
        (tmp_path / name).write_text("\n".join(lines))
        return str(tmp_path / name)

    return write


@pytest.fixture
def make_stream(write_texts, tmp_path):
    """Builds a stream of one of the three kinds on such a file."""

    def make(kind, **options):
        stream, arguments = KINDS[kind]
        source = options.pop("source", None) or write_texts()
        options = {"cache_dir": str(tmp_path / "cache"), "encoder": Words(max_length=8), **options}
        return stream(source=source, **{**arguments, **options})

    return make
