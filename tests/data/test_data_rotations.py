from __future__ import annotations

import numpy as np
import pytest

from lightning_evolve.data.held_out_classes import hold_out_classes
from lightning_evolve.data.rotations import with_rotations
from lightning_evolve.data.rows import Rows
from lightning_evolve.errors import UsageError

FRACTIONS = (0.5, 0.25, 0.25)


def arrange(rows):
    return hold_out_classes({"train": rows}, 2, 2, FRACTIONS, 0)


def images(shape, classes=8, each=2):
    pixels = np.random.default_rng(0).integers(0, 255, (classes * each, *shape), dtype=np.uint8)
    return Rows([f"class{n % classes}" for n in range(len(pixels))], images=pixels)


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 2)])
def test_turned_classes_are_classes_of_the_same_split(shape):
    before = arrange(images(shape))
    after = with_rotations(before)
    assert len(after.rows) == 4 * len(before.rows)
    assert len(after.class_names) == 4 * len(before.class_names)
    assert list(after.class_names) == sorted({*after.rows.labels})
    for split, numbers in before.splits.items():
        ours = {before.rows.labels[n] for n in numbers}
        theirs = {after.rows.labels[n] for n in after.splits[split]}
        assert theirs == ours | {f"{name} turned {by}" for name in ours for by in (90, 180, 270)}
    first = before.rows.images[0]
    for part, name in enumerate(("", " turned 90", " turned 180", " turned 270")):
        place = part * len(before.rows)
        assert after.rows.labels[place] == before.rows.labels[0] + name
        assert np.array_equal(after.rows.images[place], np.rot90(first, part))


def test_what_cannot_be_turned(make_rows):
    with pytest.raises(UsageError, match="square images, and these are 3x4"):
        with_rotations(arrange(images((3, 4))))
    with pytest.raises(UsageError, match="rotations: true is for images"):
        with_rotations(arrange(make_rows(8, 2)))


def test_turned_classes_count_where_a_task_needs_many():
    rows = images((3, 3))  # two classes in the smallest splits, eight when turned
    assert hold_out_classes({"train": rows}, 8, 2, FRACTIONS, 0, copies=4)
    with pytest.raises(UsageError, match=r"has 8 of 32 classes, fewer than ways=9"):
        hold_out_classes({"train": rows}, 9, 2, FRACTIONS, 0, copies=4)
    with pytest.raises(UsageError, match=r"has 4 of 8 classes, fewer than ways=8"):
        hold_out_classes({"train": rows}, 8, 2, FRACTIONS, 0)
