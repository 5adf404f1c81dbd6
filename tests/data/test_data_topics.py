from __future__ import annotations

from collections import Counter

import pytest

from lightning_evolve.data.topics import LONGEST, SHORTEST, TEXTS, TOPICS, topics
from lightning_evolve.evaluation.comparison import floor_row
from lightning_evolve.streams import EpisodeStream


def test_texts_are_a_function_of_the_seed():
    rows = topics(0)
    assert rows == topics(0)
    assert rows.texts != topics(1).texts
    counts = Counter(rows.labels)
    assert len(counts) == TOPICS
    assert set(counts.values()) == {TEXTS}
    lengths = [len(text.split()) for text in rows.texts]
    assert (min(lengths), max(lengths)) == (SHORTEST, LONGEST)
    assert len(set(rows.texts)) == len(rows), "cleaning drops none"


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("topics"))
    built = EpisodeStream(ways=10, shots=10, source="topics", cache_dir=cache)
    built.setup()
    return built


def test_there_is_something_to_learn_and_it_is_hard(stream):
    floor = floor_row(stream.tasks("test", 20), stream.floor_features)["accuracy"]["mean"]
    assert 0.6 < floor < 0.8


def test_words_of_held_out_topics_are_known(stream):
    ids = stream.table.inputs["input_ids"][stream.splits["test"]]
    assert (ids == 1).float().mean() < 0.01, "1 is the unknown word"
