"""A stream with planned drift, as a source."""

from collections import Counter

import pytest

from lightning_evolve.data.cache import Cache
from lightning_evolve.data.docstrings import docstrings
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.collection import (
    Phase,
    Planned,
    collect,
)
from lightning_evolve.evolution.collection.planned import DAY
from tests.evolution.ingested import texts


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.csv"
    rows = [f"{name} {n},{name}" for n in range(20) for name in ("ant", "bee", "cat", "dog")]
    path.write_text("\n".join(["text,label", *rows, "ant 0,ant", "twice,ant", "twice,bee"]))
    return str(path)


DRIFT = [
    Phase(2, 6, {"up": ["ant", "bee"], "down": ["cat"]}),
    Phase(2, 6, {"up": ["cat"], "down": ["ant", "dog"]}),
    Phase(1, 4, ["ant", "dog"]),
]


def test_a_plan_is_a_function_of_its_seed_and_repeats_no_row(corpus):
    plan = Planned(corpus, DRIFT, seed=1)
    chunks = list(plan.read(None))
    assert chunks == list(Planned(corpus, DRIFT, seed=1).read(None))
    assert chunks != list(Planned(corpus, DRIFT, seed=2).read(None))
    assert [chunk.batch for chunk in chunks] == [0, 1, 2, 3, 4]
    assert [plan.phase(chunk.batch) for chunk in chunks] == [0, 0, 1, 1, 2]
    assert plan.batches == 5
    found = [r.text for chunk in chunks for r in chunk.records]
    assert len(found) == len(set(found)) == 28
    assert "twice" not in found
    for chunk in chunks:
        members = DRIFT[plan.phase(chunk.batch)].members
        counts = Counter(r.label for r in chunk.records)
        assert set(counts.values()) == {len(chunk.records) // 2}
        for record in chunk.records:
            assert record.text.split()[0] in members[record.label]
            assert int(record.time // DAY) == chunk.batch
    assert {r.text.split()[0] for r in chunks[0].records if r.label == "up"} == {"ant", "bee"}


def test_the_mixture_of_a_label_does_not_drift_within_a_phase(tmp_path):
    rows = [f"{name} {n},{name}" for name, most in (("ant", 90), ("bee", 30)) for n in range(most)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *rows]))
    plan = Planned(str(tmp_path / "x.csv"), [Phase(3, 40, {"up": ["ant", "bee"]})])
    for chunk in plan.read(None):
        assert 4 <= sum(r.text.startswith("bee") for r in chunk.records) <= 16


def test_one_batch_a_generation_also_over_kills(journal, corpus):
    plan = Planned(corpus, DRIFT)
    everything = [r.text for chunk in plan.read(None) for r in chunk.records]
    assert sum(collect(journal, [plan], batches=1).added.values()) == 6
    assert not collect(journal, [plan], batches=1).added
    assert sum(collect(journal, [plan], batches=3).added.values()) == 12
    assert journal.position(plan.name) == 3
    collect(journal, [plan])
    assert [text for text, _ in texts(journal)] == everything
    assert not collect(journal, [plan]).added


@pytest.mark.parametrize(
    ("phases", "match"),
    [
        ([], "phases is empty"),
        ([Phase(0, 5, ["ant"])], "phase 1 has 0 generations of 5 rows"),
        ([Phase(1, 5, [])], "phase 1 has a label without classes"),
        ([Phase(1, 5, {"up": []})], "phase 1 has a label without classes"),
        ([Phase(1, 5, {"up": ["ant"], "down": ["ant"]})], "phase 1 has class 'ant' twice"),
        ([Phase(1, 5, ["ant"]), Phase(1, 5, ["elk"])], "phase 2 names class 'elk'"),
        ([Phase(2, 11, ["ant"])], "phase 1 asks for more rows of label 'ant'"),
        ([Phase(1, 15, ["ant"]), Phase(1, 6, {"x": ["ant"]})], "phase 2 asks for more rows of l"),
    ],
)
def test_plans_that_make_no_sense(corpus, phases, match):
    with pytest.raises(UsageError, match=match):
        list(Planned(corpus, phases).read(None))


def test_the_embedded_corpus_has_enough_for_a_plan(tmp_path):
    names = sorted(set(docstrings(Cache(tmp_path)).labels))[:6]
    phases = [Phase(4, 40, {"a": names[:3], "b": names[3:]}), Phase(1, 10, names)]
    plan = Planned("docstrings", phases, cache_dir=str(tmp_path))
    assert [len(chunk.records) for chunk in plan.read(None)] == [40] * 4 + [10]
