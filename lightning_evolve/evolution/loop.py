"""The loop: collect, process, train, judge, promote, and begin again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_evolve.data.cache import Cache
from lightning_evolve.data.checks import at_least
from lightning_evolve.evolution import baselines
from lightning_evolve.evolution.baselines import Baseline
from lightning_evolve.evolution.collection import (
    Feedback,
    Planned,
    Source,
    WatchedFolder,
    collect,
    import_files,
)
from lightning_evolve.evolution.contest import Contest, accuracy_of, finite
from lightning_evolve.evolution.feedback import FeedbackStore
from lightning_evolve.evolution.gate import Gate
from lightning_evolve.evolution.journal import Generation, Journal
from lightning_evolve.evolution.model import Model
from lightning_evolve.evolution.monitoring import Alarm, Monitor
from lightning_evolve.evolution.optimisation import Optimisation
from lightning_evolve.evolution.pool import Mask, Pool, encoded
from lightning_evolve.evolution.pretrained import Pretrained
from lightning_evolve.evolution.processing import Processing
from lightning_evolve.evolution.state import CORRECTIONS, SERVICE, State
from lightning_evolve.evolution.training import Training
from lightning_evolve.evolution.triggers import Amount, Trigger

_FEWEST = 2  # classes without which there is nothing to tell apart
_DIRECTIONS = 100  # of the features that the monitoring looks at
_SERVED = 1000  # predictions in use that are looked at together


class Evolution:
    """Keeps a classifier current for as long as records arrive.

    A generation takes all records that are pending. Challengers grow from the champion on the rows
    that it has not learned; they are chosen between by rows held out to choose by, and the best is
    judged by the gate on rows held out to judge by. Each finished step is in the journal: killed at
    any moment, the loop goes on from the last one, to the same numbers.

    Args:
        sources: where records come from; the corrections that a server of this run has taken are
            always among them.
        pretrained: what the first champion is made of.
        processing: what becomes of records before they are learned from.
        training: how a challenger grows.
        optimisation: how many challengers a generation has, and what is learned from them.
        gate: which challenger is promoted.
        trusted: sources whose labels are believed whatever they say, as shell patterns such as
            ``"folder:audited"``.
        trust: weight of the corrections of a source, by its name, 0 to ignore it; others have 1.
        monitor: what watches the predictions in use.
        trigger: when a generation starts.
        memory: most old rows that are replayed, and most that retention is judged by.
        keep: how many earlier champions can be rolled back to.
        beside: baselines that live with the same records, for comparison.
        seed: of everything that is drawn.

    Raises:
        UsageError: for a number out of range.
    """

    def __init__(
        self,
        sources: list[Source],
        pretrained: Pretrained,
        processing: Processing | None = None,
        training: Training | None = None,
        optimisation: Optimisation | None = None,
        gate: Gate | None = None,
        trusted: list[str] | None = None,
        trust: dict[str, float] | None = None,
        monitor: Monitor | None = None,
        trigger: Trigger | None = None,
        memory: int = 5000,
        keep: int = 5,
        beside: list[Baseline] | None = None,
        seed: int = 0,
    ) -> None:
        at_least(1, memory=memory, keep=keep)
        at_least(0, seed=seed)
        baselines.check(beside or [])
        for source in sources:
            if isinstance(source, Planned) and source.seed is None:
                source.seed = seed
        self.optimisation = optimisation or Optimisation()
        self.training = training or Training()
        self.optimisation.check(self.training)
        self.sources = sources
        self.pretrained = pretrained
        self.processing = processing or Processing()
        self.gate = gate or Gate()
        self.trusted = trusted or []
        self.trust = trust or {}
        self.monitor = monitor or Monitor()
        self.trigger = trigger or Amount(200)
        self.memory = memory
        self.keep = keep
        self.beside = beside or []
        self.seed = seed
        self._unwatched = deepcopy(self.monitor.state_dict())
        self.cache = Cache()

    # ---------------------------------------------------------------- the loop

    def run(self, state: State) -> Iterator[Generation]:
        """Takes all generations that are due.

        Args:
            state: of the run, to write.

        Yields:
            Each generation when it is finished; ends when none is due.
        """
        if self.unfinished(state) is None:
            self._prune(state)  # a kill may have come between a generation's end and this
        while True:
            number = self.unfinished(state)
            if number is None:
                self.gather(state)
                reason = self.due(state)
                if reason is None:
                    if not self._waits(state.journal):
                        return
                    continue
                number = self.open(state, reason)
            self.advance(state, number)
            yield state.journal.generations()[number]

    def unfinished(self, state: State) -> int | None:
        """Number of the generation that is in progress, None where there is none."""
        generations = state.journal.generations()
        return len(generations) - 1 if generations and not generations[-1].finished else None

    def _waits(self, journal: Journal) -> bool:
        """Lets the next batch of a plan come, where one has started nothing and more is planned."""
        more = any(
            isinstance(source, Planned) and int(journal.position(source.name) or 0) < source.batches
            for source in self.sources
        )
        if more:
            with journal.writing():
                journal.set_state("waited", (journal.state("waited") or 0) + 1)
        return more

    def gather(self, state: State) -> None:
        """Collects, processes and watches: all that happens between generations."""
        journal = state.journal
        store = FeedbackStore(state.path / SERVICE, trust=self.trust, redact=self.processing.redact)
        try:
            import_files(journal, store, state.path / CORRECTIONS)
            collect(
                journal,
                [*self.sources, Feedback(store)],
                redact=self.processing.redact,
                batches=len(journal.generations()) + 1 + (journal.state("waited") or 0),
            )
            champion = journal.champion()
            known = champion and champion.model and self._classes(state, champion.model)
            self.processing.process(journal, known or None)
            self._watch(state, store)
        finally:
            store.close()

    def unsettled(self, state: State) -> list[Path]:
        """Files that are there and not read, as somebody may still be writing them."""
        corrections = state.path / CORRECTIONS
        folders = [source for source in self.sources if isinstance(source, WatchedFolder)]
        if corrections.is_dir():
            folders.append(WatchedFolder(str(corrections)))
        return [path for folder in folders for path in folder.unsettled()]

    @staticmethod
    def _classes(state: State, model: str) -> list[str]:
        return [str(name) for name in state.artifacts.json(model)["classes"]]

    def due(self, state: State) -> str | None:
        """Why a generation is to start now, None if none is."""
        journal = state.journal
        generations = journal.generations()
        (pending,) = journal.execute(
            "SELECT count(*) FROM records WHERE status = 'kept' AND generation IS NULL"
        ).fetchone()
        alarms = [
            Alarm(**{**detail, "moved": tuple(detail["moved"])})
            for detail in journal.alarms(pending=True)
        ]
        since = generations[-1].started if generations else self._began(state)
        reason = self.trigger.due(pending, time.time(), since, alarms)
        return None if not generations and self._lacking(journal) else reason

    @staticmethod
    def _lacking(journal: Journal) -> str | None:
        """What the first champion cannot be made without; None where all is there."""
        rows = journal.execute("SELECT label, part FROM records WHERE status = 'kept'").fetchall()
        classes = len({row["label"] for row in rows})
        train = sum(row["part"] == "train" for row in rows)
        if classes >= _FEWEST and train:
            return None
        return (
            f"the first champion needs {_FEWEST} classes and a training row: {len(rows)} records "
            f"have {classes} and {train}"
        )

    def _began(self, state: State) -> float:
        began = state.journal.state("began")
        if began is None:
            began = time.time()
            with state.journal.writing():
                state.journal.set_state("began", began)
        return float(began)

    def open(self, state: State, reason: str) -> int:
        """Begins a generation: from here on it is known what belongs to it.

        Args:
            state: of the run, to write.
            reason: why it begins.

        Returns:
            Its number.
        """
        journal = state.journal
        champion = journal.champion()
        number = len(journal.generations())
        with journal.writing():
            journal.execute(
                "INSERT INTO generations (number, parent, started, trigger) VALUES (?, ?, ?, ?)",
                (number, champion and champion.number, time.time(), reason),
            )
            for table in ("records", "alarms"):
                journal.execute(
                    f"UPDATE {table} SET generation = ? WHERE generation IS NULL"  # noqa: S608
                    + (" AND status = 'kept'" if table == "records" else ""),
                    (number,),
                )
        return number

    def advance(self, state: State, number: int) -> None:
        """Takes a generation from wherever it is to its end.

        Args:
            state: of the run, to write.
            number: of the generation.
        """
        champion = state.journal.champion()
        if champion is None:
            self._found(state, number)
        else:
            Contest(self, state, number, champion).play()
        self._prune(state)

    def forecast(self, state: State) -> Iterator[str]:
        """Says what the next generation would do; the state is one that nobody needs afterwards.

        Args:
            state: a copy of that of the run.

        Yields:
            Sentences.
        """
        journal = state.journal
        number = self.unfinished(state)
        if number is not None:
            yield f"generation {number} is in progress and would be finished first"
        else:
            self.gather(state)
            count = journal.execute(
                "SELECT count(*) FROM records WHERE generation IS NULL AND status = 'kept'"
            ).fetchone()[0]
            yield f"pending: {count} kept" if count else "pending: nothing"
            if (reason := self.due(state)) is None:
                lacking = None if journal.generations() else self._lacking(journal)
                yield "no generation is due" + (f": {lacking}" if lacking else "")
                return
            number = self.open(state, reason)
            yield f"generation {number} would start: {reason}"
        champion = journal.champion()
        if champion is None:
            yield f"it would found the first champion, with {self.training.first_steps} steps"
            return
        yield f"challengers would grow from champion {champion.number}"
        for trial in self.optimisation.plan(journal, self.training, (self.seed, number)):
            settings = ", ".join(f"{name} {value}" for name, value in trial["settings"].items())
            variant = trial["variant"]
            phi = "phi as it is" if variant is None else f"variant {variant + 1} of phi"
            yield f"challenger: {phi}, {settings}"

    # ---------------------------------------------------------------- watching

    def _watch(self, state: State, store: FeedbackStore) -> None:
        """Has the champion predict what has arrived, before anything is learned from it."""
        journal, champion = state.journal, state.journal.champion()
        if champion is None or champion.model is None:
            return
        position = journal.state("watched") or {"records": 0, "predictions": 0}
        arrived = journal.execute(
            # Corrections are of what was wrong, and were seen when they were served.
            "SELECT * FROM records WHERE seq > ? AND status IN ('kept', 'unlabelled')"
            " AND source NOT LIKE 'feedback:%' ORDER BY seq",
            (position["records"],),
        ).fetchall()
        served = store.predictions(position["predictions"], _SERVED)
        if not arrived and not served:
            return
        model = Model.load(state.artifacts, champion.model)
        self._resume_monitor(state)
        alarms: list[Alarm] = []
        if arrived:
            # The rows that a generation will take, by themselves: they are encoded once.
            texts = [[r["text"] for r in arrived if bool(r["label"]) == known] for known in (1, 0)]
            arrived = sorted(arrived, key=lambda row: not row["label"])
            inputs = encoded(model, [some for some in texts if some], self.cache)
            predicted = model.predict_encoded(
                {name: torch.cat([part[name] for part in inputs]) for name in inputs[0]}
            )
            names = model.and_new(r["label"] for r in arrived if r["label"])
            labels = np.array([names.index(r["label"]) if r["label"] else -1 for r in arrived])
            alarms += self.monitor.observe(
                max(r["time"] for r in arrived),
                predicted.probabilities,
                sketched(predicted.features),
                labels,
                names,
            )
            position["records"] = max(r["seq"] for r in arrived)
        while served:
            # What an earlier champion said is no news of this one.
            if some := [p for p in served if p.generation == champion.number]:
                alarms += self._served(some, model.classes)
            position["predictions"] = served[-1].seq
            served = store.predictions(position["predictions"], _SERVED)
        with journal.writing():
            for alarm in alarms:
                journal.alarm(alarm.message, asdict(alarm))
            journal.set_state("watched", position)
            journal.set_state("monitor", self.monitor.state_dict())

    def _served(self, predictions: Sequence[Any], classes: tuple[str, ...]) -> list[Alarm]:
        probabilities = np.array(
            [[p.probabilities.get(name, 0.0) for name in classes] for p in predictions], np.float32
        )
        unknown = np.full(len(predictions), -1)
        return self.monitor.observe(predictions[-1].time, probabilities, None, unknown, classes)

    def _resume_monitor(self, state: State) -> None:
        # What the journal says alone counts, also where a rollback has made it forget.
        saved = state.journal.state("monitor")
        self.monitor.load_state_dict(deepcopy(self._unwatched) if saved is None else saved)

    def watch_from(self, state: State, model: Model, pool: Pool, rows: Mask) -> None:
        """Sets what is expected of a new champion.

        Args:
            state: of the run.
            model: the champion.
            pool: records.
            rows: which of them it was chosen by.
        """
        self._resume_monitor(state)
        predicted = model.predict_encoded(pool.select(rows))
        labels = pool.labels(rows, model.classes).numpy()
        self.monitor.set_reference(
            predicted.probabilities,
            sketched(predicted.features) if len(labels) else None,
            labels,
            model.classes,
        )

    # ---------------------------------------------------------------- founding

    def _found(self, state: State, number: int) -> None:
        """Trains the first champion."""
        journal = state.journal
        rows = journal.execute(
            "SELECT text, label, part FROM records WHERE generation = ? AND status = 'kept' "
            "ORDER BY seq",
            (number,),
        ).fetchall()
        classes = sorted({row["label"] for row in rows})
        texts = [row["text"] for row in rows if row["part"] == "train"]
        began = time.process_time()
        start = self.pretrained.model(texts, classes, self.seed)
        pool = Pool(journal, start, self.cache, number)
        learned = pool.examples(pool.part == "train", start.classes)
        grown, steps = self.training.grow(
            start, learned, steps=self.training.first_steps, seed=(self.seed, number)
        )
        tune = pool.part == "tune"
        model = grown.calibrated(pool.select(tune), pool.labels(tune, grown.classes))
        model.facts |= {"generation": number, "steps": steps}
        name = model.save(state.artifacts)
        self.watch_from(state, model, pool, tune)
        held_out = pool.part == "gate"
        accuracy = finite(accuracy_of(model, pool, held_out))
        seconds = time.process_time() - began
        summary = {
            "records": len(pool),
            "new_accuracy": accuracy,
            "new_rows": int(held_out.sum()),
            "seconds": seconds,
            "beside": {n: {"held_out": accuracy, "seconds": 0.0} for n in self.beside},
        }
        with journal.writing():
            for baseline in self.beside:
                journal.set_state(f"beside:{baseline}", name)
            reason = f"the first champion, of {len(learned)} rows and {len(classes)} classes"
            journal.finish(number, "founded", [reason], model=name, summary=summary)
            journal.crown(number, "founded")
            (seen,) = journal.execute("SELECT max(seq) FROM records").fetchone()
            journal.set_state("watched", {"records": seen, "predictions": 0})
            journal.set_state("monitor", self.monitor.state_dict())

    def _prune(self, state: State) -> None:
        """Removes artifacts that nothing can come back to.

        What stays: the model in use, those of the last ``keep`` champions before it, those of the
        baselines, the scores of all generations and what is learned about learning. Records are
        never removed.
        """
        journal, artifacts = state.journal, state.artifacts
        generations = journal.generations()
        recent = journal.recent_champions(self.keep + 1)  # with the one in use
        models = [g.model for g in generations if g.number in recent and g.model]
        models += [journal.state(f"beside:{name}") for name in self.beside]
        kept = {part for model in set(models) if model for part in Model.parts(artifacts, model)}
        kept |= {g.scores for g in generations if g.scores}
        artifacts.prune(kept | set(self.optimisation.artifacts(journal)))


def sketched(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features in fewer random directions, for the monitoring to keep and to compare.

    Distances stay about what they are (Johnson and Lindenstrauss 1984), and a test of few
    dimensions has to be corrected for few.

    Args:
        features: ``[rows, d]``.

    Returns:
        ``[rows, 100]``; the same numbers where there are no more than 100 dimensions.
    """
    width = features.shape[1]
    if width <= _DIRECTIONS:
        return features
    drawn = np.random.default_rng(0).standard_normal((width, _DIRECTIONS))
    directions: NDArray[np.float32] = (drawn / np.sqrt(_DIRECTIONS)).astype(np.float32)
    return np.asarray(features @ directions, np.float32)
