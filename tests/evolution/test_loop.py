"""The loop as a whole: what it promotes, what it refuses, and that nothing stops or hurts it."""

from __future__ import annotations

import json
import time
from contextlib import closing, contextmanager

import pytest
import torch

from lightning_evolve.cli import main
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution import artifacts, journal
from lightning_evolve.evolution.collection import WatchedFolder
from lightning_evolve.evolution.feedback import FeedbackStore, Prediction
from lightning_evolve.evolution.gate import Gate
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.model import Model
from lightning_evolve.evolution.monitoring import Monitor
from lightning_evolve.evolution.optimisation import Optimisation
from lightning_evolve.evolution.processing import Processing
from lightning_evolve.evolution.proposers import ThompsonSampling
from lightning_evolve.evolution.state import State
from lightning_evolve.evolution.training import DivergedError, Training
from lightning_evolve.evolution.triggers import Amount, AnyOf, Every, OnDrift
from tests.evolution.loops import (
    AFTER,
    BEFORE,
    Batches,
    contents,
    evolution,
    lived,
    poisoned,
    texts,
)


def one_label(count, seed):
    return [(text, "sport") for text, _ in texts(count, seed=seed)]


FOUNDING, POISONED, SINGLE = (
    texts(240, seed=1),
    poisoned(texts(120, seed=2), 0.6),
    one_label(120, 3),
)
CLEAN, USUAL = texts(150, AFTER, seed=4), texts(60, AFTER, seed=5)
FOUND, POISON, ONE, GOOD, SAME = range(5)  # generations of the story


@pytest.fixture(scope="module")
def spied():
    """All that is ever trained on, as ``(features, label)``."""
    seen: list[set[bytes]] = []
    grow = Training.grow

    def spy(self, model, new, old=None, **given):
        rows = [examples.inputs["features"] for examples in (new, old) if examples is not None]
        seen.append({row.numpy().tobytes() for part in rows for row in part})
        return grow(self, model, new, old, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "grow", spy)
        yield seen


@pytest.fixture(scope="module")
def story(tmp_path_factory, spied):
    """A run of five generations: founding, poison, a single class, new classes, nothing new."""
    run = tmp_path_factory.mktemp("story") / "run"
    lived(run, Batches(FOUNDING, POISONED, SINGLE, CLEAN, USUAL), beside=["never"])
    return run


@pytest.fixture
def generations(story):
    with State(story) as state:
        return state.journal.generations()


def rows(run, where="1"):
    with State(run) as state:
        return state.journal.execute(f"SELECT * FROM records WHERE {where} ORDER BY seq").fetchall()


def champion(run):
    with State(run) as state:
        found = state.journal.champion()
        return Model.load(state.artifacts, found.model)


# ---------------------------------------------------------------------------------- verdicts


def test_founds_the_first_champion(generations):
    first = generations[FOUND]
    trained = 240 - first.summary["new_rows"]
    assert first.verdict == "founded"
    assert first.parent is None
    assert "4 classes" in first.reasons[0]
    assert first.summary["records"] == 240
    assert first.summary["new_accuracy"] > 0.9
    assert 0 < first.summary["new_rows"] < trained


def test_poison_is_held_back_and_the_history_says_why(generations, capsys, story):
    for number in (POISON, ONE):
        assert generations[number].verdict == "kept"
        assert generations[number].summary["held"] == 120
        assert "batches is held back" in " ".join(generations[number].reasons)
    assert "labelled 'sport', while the champion sees" in generations[ONE].reasons[-1]
    capsys.readouterr()
    assert main(["history", str(story)]) == 0
    assert " ".join(capsys.readouterr().out.split()).count("is held back") >= 2


def test_a_clean_batch_after_poison_is_promoted(generations, story):
    assert generations[GOOD].verdict == "promoted"
    assert generations[GOOD].parent == FOUND
    assert set(champion(story).classes) == set(AFTER)
    assert champion(story).classes[:4] == tuple(sorted(BEFORE))


def test_nothing_better_is_kept_with_its_reason(generations):
    assert generations[SAME].verdict == "kept"
    assert "new data: " in generations[SAME].reasons[0]
    assert generations[SAME].model is None


def test_held_rows_teach_and_judge_nothing_ever_after(generations, story):
    assert {row["status"] for row in rows(story, f"generation IN ({POISON}, {ONE})")} == {"held"}
    gate = len(rows(story, f"generation = {FOUND} AND part = 'gate'"))
    assert generations[GOOD].summary["old_rows"] == gate
    assert generations[GOOD].summary["new_rows"] == len(
        rows(story, f"generation = {GOOD} AND part = 'gate'")
    )


def test_nothing_held_out_is_ever_trained_on(story, spied):
    with State(story) as state:
        encode = Model.load(state.artifacts, state.journal.champion().model).encode
    by_part = {}
    for row in rows(story, "part IS NOT NULL AND generation IS NOT NULL"):
        vector = encode([row["text"]])["features"][0].numpy().tobytes()
        by_part.setdefault("held" if row["status"] == "held" else row["part"], set()).add(vector)
    trained = set().union(*spied)
    assert trained == by_part["train"]
    assert not trained & (by_part["tune"] | by_part["gate"] | by_part["held"])
    parts = {}
    for row in rows(story, "part IS NOT NULL"):
        parts.setdefault(row["key"], set()).add(row["part"])
    assert all(len(found) == 1 for found in parts.values())


def test_rows_are_new_until_a_champion_has_learned_them(tmp_path, spied):
    spied.clear()
    half = texts(80, AFTER, seed=6)
    found = lived(
        tmp_path / "run",
        Batches(FOUNDING, half, texts(80, AFTER, seed=7)),
        gate=Gate(fewest=30),
    )
    assert [g.verdict for g in found] == ["founded", "kept", "promoted"]
    assert "30 at least" in found[1].reasons[0]
    assert found[2].summary["new_rows"] > found[1].summary["new_rows"]
    assert spied[1] < spied[2]


def test_a_challenger_that_forgets_is_not_promoted(tmp_path):
    careless = Training(alpha=1.0, steps=100, first_steps=60, replay=0.0)
    new = texts(150, ("music", "law"), seed=4)
    found = lived(tmp_path / "run", Batches(FOUNDING, new), training=careless)
    assert found[1].verdict == "kept"
    assert any(reason.startswith("old data: -") for reason in found[1].reasons)


def test_new_classes_can_be_refused(tmp_path):
    run = tmp_path / "run"
    found = lived(
        run,
        Batches(FOUNDING, texts(120, AFTER, seed=4)),
        processing=Processing(tune=0.2, gate=0.3, new_classes="refuse"),
    )
    assert found[1].summary["records"] == 80
    assert set(champion(run).classes) == set(BEFORE)
    assert {row["label"] for row in rows(run, "status = 'refused'")} == {"music", "law"}


def test_texts_without_a_label_are_watched_and_not_learned(tmp_path):
    run = tmp_path / "run"
    bare = [(text, None) for text, _ in texts(60, seed=8)]
    found = lived(run, Batches(FOUNDING, [*bare, *texts(40, AFTER, seed=4)]))
    assert found[1].summary["records"] == 40
    assert {row["generation"] for row in rows(run, "status = 'unlabelled'")} == {None}
    with State(run) as state:
        assert state.journal.state("watched")["records"] == len(rows(run))
        seen = state.journal.state("monitor")["windows"]["classes"]
    assert len(seen["current"]) == 100


def test_a_trusted_source_passes(tmp_path):
    batches = Batches(FOUNDING, {"folder:audited": POISONED})
    run = tmp_path / "run"
    lived(run, batches, trusted=["folder:*"], gate=Gate(fewest=1000))
    assert not rows(run, "status = 'held'")


def test_poison_from_many_small_sources_is_held_back(tmp_path):
    run = tmp_path / "run"
    small = {f"feedback:user {n}": POISONED[10 * n : 10 * n + 10] for n in range(12)}
    found = lived(run, Batches(FOUNDING, small))
    assert found[1].verdict == "kept"
    assert len(rows(run, "status = 'held'")) == 120
    assert "is held back" in " ".join(found[1].reasons)


def test_poison_that_comes_little_by_little_is_held_back(tmp_path):
    run = tmp_path / "run"
    drops = [POISONED[10 * n : 10 * n + 10] for n in range(12)]
    found = lived(run, Batches(FOUNDING, *drops))
    assert {g.verdict for g in found[1:]} == {"kept"}
    assert len(rows(run, "status = 'held'")) >= 100


def test_one_poisoned_source_does_not_hold_back_another(tmp_path):
    run = tmp_path / "run"
    found = lived(run, Batches(FOUNDING, {"feedback:bad": POISONED, "folder:good": CLEAN}))
    assert found[1].verdict == "promoted"
    assert {row["source"] for row in rows(run, "status = 'held'")} == {"feedback:bad"}


# ---------------------------------------------------------------------- founding needs classes


def test_founding_waits_for_two_classes_and_says_so(tmp_path):
    run = tmp_path / "run"
    folder = tmp_path / "inbox"
    folder.mkdir()
    put(folder / "a.jsonl", one_label(100, 1))
    source = WatchedFolder(str(folder), settle_seconds=0)
    assert lived(run, source) == []
    with State(run) as state:
        said = list(evolution(source, cache=tmp_path / "cache").forecast(state))
    assert "2 classes" in said[-1]
    put(folder / "b.jsonl", FOUNDING)
    assert [g.verdict for g in lived(run, source)] == ["founded"]


def test_founding_without_held_out_rows(tmp_path):
    found = lived(
        tmp_path / "run", Batches(FOUNDING, CLEAN), processing=Processing(tune=0.0, gate=0.0)
    )
    assert found[0].summary["new_accuracy"] is None
    assert "0 held-out rows" in found[1].reasons[0]


def put(path, labelled):
    lines = [json.dumps({"text": text, "label": label}) for text, label in labelled]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------- learning to learn

LEARNS = {
    "optimisation": {"pairs": 1, "proposer": lambda: ThompsonSampling({"alpha": [0.1, 0.3]})},
    "beside": ["always", "scratch"],
}


def learning():
    proposer = LEARNS["optimisation"]["proposer"]()
    return {
        "optimisation": Optimisation(pairs=1, proposer=proposer),
        "beside": ["always", "scratch"],
        "training": Training(alpha=0.1, steps=12, first_steps=30),
        "processing": Processing(tune=0.2, gate=0.3),
        "keep": 2,
    }


LIFE = (FOUNDING, texts(90, AFTER, seed=4), POISONED[:60], texts(90, AFTER, seed=5))


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """An uninterrupted run that also learns to learn, with baselines beside it."""
    run = tmp_path_factory.mktemp("life") / "run"
    lived(run, Batches(*LIFE), **learning())
    return run


def test_phi_moves_and_the_proposer_learns(life):
    with State(life) as state:
        outer = state.artifacts.tensors(state.journal.state("outer"))
        proposer = state.journal.state("proposer")
        steps = state.journal.generations()
    rule = learning()["training"].rule(champion(life), ["all"])
    learned = sum(g.summary.get("settings") is not None for g in steps)
    assert learned == 3  # the first batch founds; the second is tried again beside the poison
    assert int(outer["generation"]) == learned
    assert any(not torch.equal(outer[f"phi.{name}"], p) for name, p in rule.phi().items())
    assert proposer["observed"] == 3 * learned


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path, life):
    lived(tmp_path / "again", Batches(*LIFE), **learning())
    assert contents(tmp_path / "again") == contents(life)
    lived(tmp_path / "other", Batches(*LIFE), **learning(), seed=1)
    assert champion_name(tmp_path / "other") != champion_name(life)


def champion_name(run):
    with State(run) as state:
        return state.journal.champion().model


class Killed(BaseException):
    pass


def kill_at(patch, moment):
    """Ends the process's life at its second transaction that changes something."""
    done = 0
    real = journal.transaction

    @contextmanager
    def mortal(db, path):
        nonlocal done
        with real(db, path):
            before = db.total_changes
            yield
            changed = db.total_changes > before
            if changed and done and moment == "before":
                raise Killed  # all is computed, nothing is written
        done += changed
        if done and moment == "after":
            raise Killed

    patch.setattr(journal, "transaction", mortal)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_every_transaction_it_comes_to_the_same(tmp_path, life, moment, monkeypatch):
    run, deaths = tmp_path / "run", 0
    while True:
        with monkeypatch.context() as patch:
            kill_at(patch, moment)
            try:
                lived(run, Batches(*LIFE), **learning())
                break
            except Killed:
                deaths += 1
    assert deaths > 20
    assert champion_name(run) == champion_name(life)
    assert contents(run) == contents(life)
    assert stored(run, scores=False) == stored(life, scores=False)


def test_an_error_that_the_caller_survives_leaves_nothing_behind(tmp_path, life, monkeypatch):
    # The same objects go on: what they have learned in vain must not count twice.
    run = tmp_path / "run"
    one = evolution(Batches(*LIFE), cache=tmp_path / "cache", **learning())
    with State(run, write=True) as state:
        finish = Journal.finish

        def fails(self, *given, **named):
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "finish", finish)
                raise UsageError("no space")

        for number in range(len(LIFE)):
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "finish", fails)
                with pytest.raises(UsageError, match="no space"):
                    next(one.run(state))
            assert next(one.run(state)).number == number
    assert contents(run) == contents(life)


def test_one_evolution_serves_two_runs(tmp_path, life):
    one = evolution(Batches(*LIFE), cache=tmp_path / "cache", **learning())
    for name in ("first", "second"):
        with State(tmp_path / name, write=True) as state:
            list(one.run(state))
    assert contents(tmp_path / "second") == contents(life)


def test_a_baseline_that_diverges_does_not_stop_the_loop(tmp_path, monkeypatch):
    grow = Training.grow

    def diverges(self, model, new, old=None, **given):
        if "settings" not in given and given.get("steps") != self.first_steps:
            raise DivergedError("training diverged")
        return grow(self, model, new, old, **given)

    monkeypatch.setattr(Training, "grow", diverges)
    run = tmp_path / "run"
    found = lived(run, Batches(FOUNDING, CLEAN), beside=["always", "scratch"])
    assert [g.verdict for g in found] == ["founded", "promoted"]
    with State(run) as state:
        assert state.journal.state("beside:always") == found[0].model


def test_challengers_that_diverge_are_not_promoted(tmp_path):
    with pytest.raises(UsageError, match="alpha"):
        Training(alpha=float("inf"))
    huge = Optimisation(pairs=0, proposer=ThompsonSampling({"alpha": [1e38]}))
    found = lived(tmp_path / "run", Batches(FOUNDING, CLEAN), optimisation=huge)
    assert found[1].verdict == "kept"
    assert "diverged" in found[1].reasons[0]


# --------------------------------------------------------------------------------- artifacts


def stored(run, *, scores=True):
    """Names of the artifacts that there are."""
    with State(run) as state:
        known = {g.scores for g in state.journal.generations()}
    names = {path.name for path in (run / "artifacts").glob("??/*")}
    return names if scores else names - known


def test_pruning_keeps_the_last_champions_and_what_goes_on(tmp_path):
    run = tmp_path / "run"
    batches = [texts(120, ("sport", "money"), seed=1)]
    batches += [texts(240, AFTER[: 3 + n], seed=2 + n) for n in range(3)]
    given = {**learning(), "beside": ["always"]}
    found = lived(run, Batches(*batches), **given)
    assert [g.verdict for g in found] == ["founded", "promoted", "promoted", "promoted"]
    with State(run) as state:
        # Two are kept beside the one in use.
        models = [*(g.model for g in found[1:]), state.journal.state("beside:always")]
        expected = {part for name in models for part in Model.parts(state.artifacts, name)}
        expected |= {state.journal.state("outer"), *(g.scores for g in found[1:])}
        assert stored(run) == expected
        with pytest.raises(UsageError, match="cannot be read"):
            Model.load(state.artifacts, found[0].model)


def test_rollback_restores_bit_for_bit_and_the_loop_goes_on(tmp_path, capsys):
    run = tmp_path / "run"
    many = [text for text, _ in texts(1000, AFTER, seed=9)]
    lived(run, Batches(FOUNDING))
    before = champion(run).predict(many)
    lived(run, Batches(FOUNDING, CLEAN))
    after = champion(run).predict(many)
    assert before.probabilities.shape != after.probabilities.shape
    assert main(["rollback", str(run)]) == 0
    restored = champion(run).predict(many)
    assert restored.probabilities.tobytes() == before.probabilities.tobytes()
    assert restored.features.tobytes() == before.features.tobytes()
    assert main(["rollback", str(run), "--to", "1"]) == 0
    assert champion(run).predict(many).probabilities.tobytes() == after.probabilities.tobytes()
    assert main(["rollback", str(run), "--to", "0"]) == 0
    found = lived(run, Batches(FOUNDING, CLEAN, USUAL))
    assert found[2].parent == 0
    assert found[2].verdict == "promoted"
    assert found[2].summary["new_rows"] > found[1].summary["new_rows"]
    with State(run) as state:
        seats = [seat["generation"] for seat in state.journal.champions()]
    assert seats == [0, 1, 0, 1, 0, 2]


def test_a_rollback_while_the_loop_rests(tmp_path):
    # Of the champion that it was set on, the monitor expects nothing of another.
    run = tmp_path / "run"
    loop = evolution(
        Batches(FOUNDING, CLEAN, USUAL),
        cache=tmp_path / "cache",
        trigger=Amount(150),
    )
    with State(run, write=True) as state:
        assert len(list(loop.run(state))) == 2
        with state.resting():
            assert main(["rollback", str(run)]) == 0
        loop.sources[0].plan.append(texts(60, seed=10))
        list(loop.run(state))
        seen = state.journal.state("monitor")
        assert state.journal.champion().number == 0
    assert len(seen["windows"]["classes"]["current"]) == 60
    assert not seen["windows"]["classes"]["reference"]


# ------------------------------------------------------------------------------------ alarms


def test_an_alarm_is_recorded_and_starts_a_generation(tmp_path, capsys):
    run = tmp_path / "run"
    drifted = texts(200, ("music", "law"), seed=4)
    found = lived(
        run,
        Batches(FOUNDING, drifted),
        monitor=Monitor(window=40),
        trigger=AnyOf([Amount(240), OnDrift()]),
    )
    assert [g.trigger.startswith("240 new") for g in found] == [True, False]
    with State(run) as state:
        alarms = state.journal.alarms()
        assert state.journal.alarms(pending=True) == []
    assert found[1].trigger in [alarm["message"] for alarm in alarms]
    assert {"embedding", "classes"} & {alarm["kind"] for alarm in alarms}
    main(["history", str(run)])
    assert f"alarm: {alarms[0]['message']}" in capsys.readouterr().out


def test_a_plan_goes_on_where_nothing_is_due(tmp_path):
    # Without drift the second and third batch start nothing; the fourth drifts.
    calm = [texts(100, seed=s) for s in (11, 12)]
    found = lived(
        tmp_path / "run",
        Batches(FOUNDING, *calm, texts(200, ("music", "law"), seed=4)),
        monitor=Monitor(window=100),
        trigger=AnyOf([Amount(240), OnDrift()]),
    )
    assert len(found) == 2
    assert found[1].summary["records"] == 400


# -------------------------------------------------------------------------------- the machine


def test_a_clock_that_runs_backwards(tmp_path, monkeypatch):
    run, now = tmp_path / "run", time.time()
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now - 1000 * next(ticks))
    found = lived(run, Batches(FOUNDING, CLEAN), trigger=AnyOf([Amount(100), Every(3600)]))
    assert [g.verdict for g in found] == ["founded", "promoted"]
    assert main(["history", str(run)]) == 0


def test_one_writer(tmp_path):
    with State(tmp_path, write=True), pytest.raises(UsageError, match="another process writes"):
        State(tmp_path, write=True)


def test_a_journal_of_a_newer_version(tmp_path, capsys):
    with State(tmp_path, write=True) as state, state.journal.writing():
        state.journal.execute("PRAGMA user_version = 99")
    for command in (["history", str(tmp_path)], ["rollback", str(tmp_path)]):
        assert main(command) == 2
        assert "version 99" in only_line(capsys)


def only_line(capsys):
    said = capsys.readouterr().err
    assert said.startswith("lightning-evolve: error: ")
    assert said.count("\n") == 1
    return said


def test_a_journal_that_is_damaged(tmp_path, capsys, life):
    content = bytearray((life / "journal.sqlite").read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    for damaged in (b"no journal at all" * 100, bytes(content)):
        (tmp_path / "journal.sqlite").write_bytes(damaged)
        for command in ("history", "rollback"):
            assert main([command, str(tmp_path)]) == 2
            assert "journal.sqlite" in only_line(capsys)


def test_a_full_disk_under_the_journal(tmp_path):
    run = tmp_path / "run"
    lived(run, Batches(FOUNDING))
    with State(run, write=True) as state:
        (pages,) = state.journal.execute("PRAGMA page_count").fetchone()
        state.journal.execute(f"PRAGMA max_page_count = {pages}")
        loop = evolution(Batches(FOUNDING, CLEAN, USUAL), cache=tmp_path / "cache")
        with pytest.raises(UsageError, match=r"full.*free some space"):
            list(loop.run(state))
    lived(run, Batches(FOUNDING, CLEAN, USUAL))
    lived(tmp_path / "whole", Batches(FOUNDING, CLEAN, USUAL))
    assert contents(run) == contents(tmp_path / "whole")


def test_a_full_disk_under_the_artifacts(tmp_path, monkeypatch):
    run = tmp_path / "run"

    def full(_):
        raise OSError(28, "No space left on device")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(artifacts.os, "fsync", full)
            with pytest.raises(UsageError, match=r"artifacts.*no space left on device.*free"):
                lived(run, Batches(FOUNDING, CLEAN))
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]
    found = lived(run, Batches(FOUNDING, CLEAN))
    lived(tmp_path / "whole", Batches(FOUNDING, CLEAN))
    assert [g.verdict for g in found] == ["founded", "promoted"]
    assert contents(run) == contents(tmp_path / "whole")


def test_corrections_are_no_news_to_the_monitor(tmp_path, monkeypatch):
    """They are of what was wrong: their errors say nothing about all that was right."""
    run = tmp_path / "run"
    lived(run, Batches(FOUNDING))
    shares = {name: 1 / len(BEFORE) for name in BEFORE}
    answer = Prediction("p", "a text of nobody", BEFORE[0], 0.25, shares, generation=9, time=9.0)
    with closing(FeedbackStore(run / "service.sqlite")) as store:
        store.log_predictions([answer])
        store.give("p", BEFORE[1], source="ann")
    seen = []
    monkeypatch.setattr(Monitor, "observe", lambda _, *given: seen.append(given) or [])
    with State(run, write=True) as state:
        evolution(Batches(FOUNDING), cache=tmp_path / "cache").gather(state)
        texts = [row["text"] for row in state.journal.execute("SELECT text FROM records")]
    assert "a text of nobody" in texts
    assert not seen
