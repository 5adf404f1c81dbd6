import random
import signal
import subprocess
import sys
import time

import pytest

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution import processing
from lightning_evolve.evolution.collection import Feedback, collect
from lightning_evolve.evolution.feedback import FeedbackStore, Prediction
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.processing import Processing, jaccard, shingles
from lightning_evolve.evolution.records import Record, part_of, text_key

pytest.importorskip("datasketch", reason="near-duplicates need the extra evolution")

SENTENCE = (
    "the quick brown fox jumps over the lazy dog and runs into the deep dark wood by night {}"
)


def add(journal, *rows, source="x"):
    """Ingests rows of text, label and perhaps weight."""
    with journal.writing():
        journal.ingest(Record(0.0, source, text, label, *w) for text, label, *w in rows)


def records(journal, columns="text, label, status"):
    return [tuple(r) for r in journal.execute(f"SELECT {columns} FROM records ORDER BY seq")]


def statuses(journal):
    return [status for (status,) in records(journal, "status")]


def in_part(part, template=SENTENCE):
    """A text of this part."""
    for number in range(10_000):
        text = template.format(number)
        if part_of(text_key(text), 0.15, 0.15) == part:
            return text
    raise AssertionError


def test_records_are_kept_in_the_part_of_their_text(journal):
    words = random.Random(0)
    texts = [" ".join(f"{words.randrange(16**6):x}" for _ in range(8)) for _ in range(300)]
    add(journal, *((text, "a") for text in texts))
    processed = Processing().process(journal)
    assert processed.counts == {"kept": 300}
    for text, part in records(journal, "text, part"):
        assert part == part_of(text_key(text), 0.15, 0.15)
    assert {part for (part,) in records(journal, "part")} == {"train", "tune", "gate"}
    assert Processing().process(journal).counts == {}


def test_what_becomes_of_each(journal):
    add(
        journal,
        ("One text.", "a"),
        ("one  TEXT.", "a"),
        ("No label", None),
        ("one text.", None),
        ("Fresh class", "z"),
        ("  ", "a"),
    )
    processed = Processing(new_classes="refuse").process(journal, known={"a", "b"})
    assert statuses(journal) == ["kept", "duplicate", *["unlabelled"] * 2, *["refused"] * 2]
    assert processed.counts == {
        "kept": 1,
        "duplicate": 1,
        "unlabelled": 2,
        "refused": 1,
        "empty": 1,
    }
    reasons = journal.execute("SELECT reason FROM quarantine ORDER BY seq").fetchall()
    assert [r[0] for r in reasons] == ["label 'z' is not known", "it has no text"]


def test_new_classes_are_admitted_by_default(journal):
    add(journal, ("Fresh class", "z"))
    Processing().process(journal, known={"a"})
    assert statuses(journal) == ["kept"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("t", "a"), ("t", "b")], ["superseded", "kept"]),
        ([("t", "a", 2.0), ("t", "b")], ["kept", "superseded"]),
        ([("t", "a"), ("T", "b", 2.0), ("t ", "c")], ["superseded", "kept", "superseded"]),
        ([("t", "a"), ("t", "b"), ("T", "b")], ["superseded", "kept", "duplicate"]),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_of_two_labels_the_weightier_wins_then_the_later(journal, rows, expected, together):
    for some in [rows] if together else [[row] for row in rows]:
        add(journal, *some)
        Processing().process(journal)
    assert statuses(journal) == expected
    parts = {part for part, status in records(journal, "part, status") if status != "duplicate"}
    assert parts == {part_of(text_key("t"), 0.15, 0.15)}


def test_a_near_duplicate_of_the_same_label(journal):
    one = SENTENCE.format("x")
    add(journal, (one, "a"), (one.replace("quick", "quiet"), "a"), (one[::-1], "a"))
    processed = Processing(near=0.75).process(journal)
    assert statuses(journal) == ["kept", "duplicate", "kept"]
    assert processed.counts == {"kept": 2, "near duplicate": 1}


@pytest.mark.parametrize("first", ["train", "tune", "gate"])
@pytest.mark.parametrize("second", ["train", "tune", "gate"])
def test_what_is_nearly_held_out_is_never_trained_on_nor_the_other_way_round(
    journal, first, second
):
    one, other = in_part(first), in_part(second, SENTENCE + "?")
    add(journal, (one, "a"), (other, "b"))
    counts = Processing().process(journal).counts
    if first == second:
        assert statuses(journal) == ["kept", "kept"]  # a contrast to learn
    else:
        assert counts == {"kept": 1, "near held out": 1}
        assert records(journal, "status, part") == [("kept", first), ("duplicate", None)]


def test_how_near_is_an_option(journal):
    one, other = "what is the balance of my account", "what is the balance of our account"
    index = jaccard(shingles(one), shingles(other))
    assert 0.6 < index < 0.75
    add(journal, (one, "a"), (other, "a"))
    Processing(near=0.75).process(journal)
    assert statuses(journal) == ["kept", "kept"]
    add(journal, (one + "?", "a"))
    Processing(near=0.99).process(journal)
    assert statuses(journal)[-1] == "kept"
    add(journal, (one + "!", "a"))
    Processing(near=0.9).process(journal)
    assert statuses(journal)[-1] == "duplicate"


def test_near_duplicates_are_not_missed(journal):
    draw = random.Random(0)
    words = [f"{draw.randrange(16**5):05x}" for _ in range(500)]
    originals = [draw.choices(words, k=30) for _ in range(200)]
    add(journal, *((" ".join(text), "a") for text in originals))
    variants = []
    for text in originals:
        text = list(text)
        text[draw.randrange(30)] = draw.choice(words)
        variants.append(" ".join(text))
    add(journal, *((text, "a") for text in variants))
    Processing(near=0.8).process(journal)
    found = dict(records(journal, "text, status"))
    for text, variant in zip(originals, variants, strict=True):
        index = jaccard(shingles(" ".join(text)), shingles(variant))
        if text != variant.split():
            assert found[variant] == ("duplicate" if index >= 0.8 else "kept")


def test_a_part_outlives_the_shares(journal):
    texts = [f"{n} {n * n} {n**3}" for n in range(100)]
    add(journal, *((text, "a") for text in texts))
    Processing(near=1.0, gate=0.5, tune=0.2).process(journal)
    add(journal, *((text, "b") for text in texts))
    Processing(near=1.0, gate=0.0, tune=0.0).process(journal)
    parts = records(journal, "part")
    assert parts[:100] == parts[100:]
    assert len(set(parts)) == 3
    assert statuses(journal) == ["superseded"] * 100 + ["kept"] * 100


def test_corrections_go_back_and_forth(journal, tmp_path):
    store = FeedbackStore(tmp_path / "service.sqlite", trust={"ed": 2.0})
    store.log_predictions([Prediction("p", "Some text", "a", 0.9, {}, 0, 0.0)])
    add(journal, ("Some text", "a"))

    def labels():
        collect(journal, [Feedback(store)])
        Processing().process(journal)
        return [label for _, label, status in records(journal) if status == "kept"]

    assert labels() == ["a"]
    for label, source, expected in [
        ("b", "ann", "b"),
        ("a", "ann", "a"),
        ("b", "ed", "b"),
        ("b", "ann", "b"),  # weighs 3 together
        ("a", "ed", "a"),  # weighs 2 alone: more than what is left of the other
        ("a", "ann", "a"),
        ("b", "ben", "a"),
    ]:
        store.give("p", label, source)
        assert labels() == [expected]
    assert len(records(journal)) == 2


def test_a_weighty_record_is_not_superseded_by_a_light_correction(journal, tmp_path):
    store = FeedbackStore(tmp_path / "service.sqlite", trust={"bot": 0.5})
    store.log_predictions([Prediction("p", "Some text", "a", 0.9, {}, 0, 0.0)])
    add(journal, ("Some text", "a"))
    store.give("p", "b", "bot")
    collect(journal, [Feedback(store)])
    assert Processing().process(journal).counts == {"kept": 1, "superseded": 1}
    store.give("p", "b", "ann")
    collect(journal, [Feedback(store)])
    Processing().process(journal)
    assert statuses(journal) == ["superseded", "kept"]


def test_a_record_that_comes_back_is_not_new_to_the_generations(journal, tmp_path):
    store = FeedbackStore(tmp_path / "service.sqlite")
    store.log_predictions([Prediction("p", "Some text", "a", 0.9, {}, 0, 0.0)])
    add(journal, ("Some text", "a"))
    Processing().process(journal)
    with journal.writing():
        journal.execute("UPDATE records SET generation = 0")
    for label in "ba":
        store.give("p", label, "ann")
        collect(journal, [Feedback(store)])
        Processing().process(journal)
    assert records(journal, "label, status, generation") == [
        ("a", "kept", 0),
        ("b", "superseded", None),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_text_that_is_held_out_is_ever_trained_on(journal, seed, tmp_path):
    """Random records from random sources, in random portions, through everything."""
    draw = random.Random(seed)
    store = FeedbackStore(tmp_path / "service.sqlite", trust={"ed": 2.0})
    base = [" ".join(f"{draw.randrange(16**6):x}" for _ in range(8)) for _ in range(20)]
    variants = [text.upper() for text in base] + [text + "!" for text in base]
    texts = [*base, *variants, *(f" {text.replace(' ', '  ')} " for text in base)]
    held_out, trained = set(), set()
    for turn in range(8):
        for text in draw.sample(texts, 12):
            add(journal, (text, draw.choice([*"abc", None]), draw.choice([0.5, 1.0, 2.0])))
            identity = f"{turn}-{text}"
            store.log_predictions([Prediction(identity, text, "a", 0.9, {}, 0, 0.0)])
            store.give(identity, draw.choice("abc"), draw.choice(["ed", "ann"]))
        collect(journal, [Feedback(store)])
        # Even where somebody changes the shares on the way.
        Processing(tune=0.2, gate=draw.choice([0.1, 0.3])).process(journal)
        in_use = records(journal, "key, part, text, label, status")
        for key, part, _, _, status in in_use:
            if status == "kept":
                (trained if part == "train" else held_out).add(key)
        assert not trained & held_out
        kept = [row for row in in_use if row[4] == "kept"]
        assert len({key for key, *_ in kept}) == len(kept)
        for one in kept:
            for other in kept:
                index = jaccard(shingles(one[2].casefold()), shingles(other[2].casefold()))
                assert index < 0.8 or one[1] == other[1]
    assert held_out
    assert trained


def test_the_size_of_the_chunks_decides_nothing(tmp_path, monkeypatch):
    found = []
    for chunk in (1, 7, 500):
        monkeypatch.setattr(processing, "CHUNK", chunk)
        journal = Journal(tmp_path / f"{chunk}.sqlite", create=True)
        draw = random.Random(0)
        for _ in range(300):
            add(journal, (SENTENCE.format(draw.randrange(99)), draw.choice("ab")))
        Processing().process(journal)
        found.append(records(journal, "text, label, status, part"))
    assert found[0] == found[1] == found[2]


CHILD = """
import sys
from pathlib import Path
from lightning_evolve.evolution import processing
from lightning_evolve.evolution.journal import Journal
processing.CHUNK = 5
journal = Journal(Path(sys.argv[1]))
processing._bands({"warm up"})
assert not {"torch", "lightning", "pandas"} & set(sys.modules)
print("ready", flush=True)
processing.Processing().process(journal)
"""


def test_kills_change_nothing(tmp_path):
    draw = random.Random(0)
    rows = [(f"{draw.randrange(60)} " * 12, draw.choice("abc")) for _ in range(1500)]
    for name in ("killed", "whole"):
        journal = Journal(tmp_path / f"{name}.sqlite", create=True)
        with journal.writing():
            journal.ingest(
                Record(0.0, "x", f"{text}{n}", label) for n, (text, label) in enumerate(rows)
            )
    Processing().process(journal)
    killed = tmp_path / "killed.sqlite"
    left = set()
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", CHILD, killed], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(draw.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        left.add(statuses(Journal(killed)).count("new"))
    assert len(left) > 2  # it was hit on the way
    resumed = Journal(killed)
    Processing().process(resumed)
    columns = "seq, text, label, status, part"
    assert records(resumed, columns) == records(journal, columns)
    bands = [j.execute("SELECT * FROM bands").fetchall() for j in (resumed, journal)]
    assert [tuple(r) for r in bands[0]] == [tuple(r) for r in bands[1]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"near": 0.5}, r"near is 0.5: give 0.75 to 1"),
        ({"near": 1.1}, r"near is 1.1"),
        ({"tune": 0.5, "gate": 0.5}, "tune is 0.5 and gate 0.5"),
        ({"tune": -0.1}, "tune is -0.1"),
        ({"new_classes": "ask"}, "new_classes is 'ask'"),
    ],
)
def test_arguments(options, match):
    with pytest.raises(UsageError, match=match):
        Processing(**options)


def test_without_the_extra(journal, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    processing._minhash.cache_clear()
    add(journal, ("text", "a"))
    with pytest.raises(UsageError, match=r"pip install lightning-evolve\[evolution\]"):
        Processing().process(journal)
    assert statuses(journal) == ["new"]


def test_what_is_held_back_does_not_turn_its_like_away(journal):
    def part(text):
        return part_of(text_key(text), 0.15, 0.15)

    pairs = ((s, s.replace("quick", "quiet")) for s in map(SENTENCE.format, range(100)))
    one, near = next(pair for pair in pairs if part(pair[0]) == part(pair[1]))
    add(journal, (one, "a"), source="poisoner")
    Processing().process(journal)
    with journal.writing():
        journal.execute("UPDATE records SET status = 'held'")
    add(journal, (near, "a"), (one.upper(), "a"), source="audited")
    Processing(near=0.75).process(journal)
    assert statuses(journal) == ["held", "kept", "kept"]
