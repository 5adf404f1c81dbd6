"""Names of classes as support rows."""

import json

import pytest
import torch

from lightning_evolve.data.class_names import in_words
from lightning_evolve.errors import UsageError
from lightning_evolve.evaluation.comparison import floor_row
from lightning_evolve.streams import EpisodeStream

CLASSES = ("card_payment_fee", "07:STYLE & BEAUTY", "PlayMusic", "cash at home", "3D_printing")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("card_payment_fee", "card payment fee"),
        ("07:STYLE & BEAUTY", "STYLE BEAUTY"),
        ("3. sports", "sports"),
        ("PlayMusic", "Play Music"),
        ("3D_printing", "3D printing"),
        ("Überweisung", "Überweisung"),
        ("xml.dom", "xml dom"),
        ("天气", "天气"),
    ],
)
def test_names_in_words(name, words):
    assert in_words(name) == words


def write(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.fixture
def source(tmp_path):
    rows = [
        {"text": f"row {n} of class number {c} says {c * 31 + n}", "label": name}
        for c, name in enumerate(CLASSES)
        for n in range(8)
    ]
    rows += [
        {"text": f"row {n} of the held out {name}", "label": name}
        for name in ("one more", "two more", "three more", "four more")
        for n in range(8)
    ]
    return write(tmp_path / "named.jsonl", rows)


def stream(source, **options):
    made = EpisodeStream(
        source=source,
        ways=2,
        queries=3,
        class_fractions=(0.4, 0.3, 0.3),
        **{"shots": 2, **options},
    )
    made.setup()
    return made


def test_each_class_has_its_name_as_a_support_row_and_all_else_is_as_it_was(source):
    plain, named = stream(source), stream(source, class_names=True)
    for split in ("train", "validation", "test"):
        for one, other in zip(plain.tasks(split, 4), named.tasks(split, 4), strict=True):
            assert one.name == other.name
            assert torch.equal(one.query.rows, other.query.rows)
            support = other.support[0]
            names = support.rows >= len(plain.table.labels)
            assert torch.equal(support.rows[~names], one.support[0].rows)
            assert support.labels.tolist() == [0, 0, 0, 1, 1, 1]
            called = named.raw(support.rows[names])
            classes = [named.table.class_names[named.table.labels[r]] for r in one.query.rows[::3]]
            assert called == [in_words(c) for c in classes]
    # They are in no split, so that nothing learns from those of classes that are held out.
    rows = torch.cat(list(named.splits.values()))
    assert len(rows) == len(plain.table.labels)
    assert named.spec == plain.spec


def test_without_a_shot_the_names_are_all_there_is(source):
    named = stream(source, class_names=True, shots=0)
    tasks = named.tasks("test", 3)
    assert all(len(task.support[0].rows) == 2 for task in tasks)
    # Texts of "the held out one more" have the words of their class's name.
    assert floor_row(tasks, named.floor_features)["accuracy"]["mean"] >= 0.5
    with pytest.raises(UsageError, match="shots is 0: give 1 or more"):
        EpisodeStream(source=source, shots=0)


def test_names_that_say_nothing(tmp_path):
    rows = [{"text": f"row {n} of {c}", "label": str(c)} for c in range(6) for n in range(8)]
    file = write(tmp_path / "numbers.jsonl", rows)
    with pytest.raises(UsageError, match="the name of the class '0' says nothing; leave it out"):
        stream(file, class_names=True)


def test_images_have_no_use_for_names():
    with pytest.raises(UsageError, match="class_names: true is for texts, and the source has"):
        stream("digits", class_names=True)
