"""A label that nobody knew is a class once it has a few rows; none of them is lost till then."""

from __future__ import annotations

from lightning_evolve.evolution.state import State
from tests.evolution.loops import BEFORE, Batches, evolution, texts


def test_a_slip_of_the_pen_is_no_class(tmp_path):
    music = texts(40, ["music"], seed=9)
    batches = [
        texts(240),
        [*texts(60, seed=1), *music[:3], ("a slip", "sprot")],
        [*texts(120, seed=2), *music[3:]],
    ]
    learned: list[set[str]] = []
    with State(tmp_path / "run", write=True) as state:
        loop = evolution(Batches(*batches), cache=tmp_path / "cache")
        grow = loop.training.grow

        def spy(model, new, old=None, **given):
            learned.append(set(model.classes))
            if "music" in model.classes and old is not None:
                number = model.classes.index("music")
                # Those that came before it was a class are new ones too.
                assert number not in old.labels.tolist()
                rows.append(new.labels.tolist().count(number))
            return grow(model, new, old, **given)

        rows: list[int] = []
        loop.training.grow = spy
        list(loop.run(state))
        parts = dict(
            state.journal.execute(
                "SELECT part, count(*) FROM records WHERE label = 'music' GROUP BY part"
            ).fetchall()
        )
    assert learned == [set(BEFORE), set(BEFORE), {*BEFORE, "music"}]
    assert rows == [parts["train"]]
