"""One generation: challengers grow from the champion, and the gate judges the best of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_evolve.evolution import baselines
from lightning_evolve.evolution.evaluation import FLOOR, Comparison, Cost, compare
from lightning_evolve.evolution.gate import Verdict
from lightning_evolve.evolution.journal import Generation
from lightning_evolve.evolution.model import Model
from lightning_evolve.evolution.pool import Mask, Pool
from lightning_evolve.evolution.state import State
from lightning_evolve.evolution.suspicion import FEWEST, Judged, Suspicion, suspect
from lightning_evolve.evolution.training import DivergedError

if TYPE_CHECKING:
    from lightning_evolve.evolution.loop import Evolution

_ROWS = 1000  # of trusted labels that a batch is compared with
_CLASS = 5  # rows, from which on a label that nobody knew is a class
_TIMED = 16  # texts that are classified to see how long it takes


class Contest:
    """A generation after the first, step by step; what is in the journal is not done again.

    *New* rows are those of generations after the champion's, which it has never learned: also those
    of generations in which it was kept, or that came before a rollback. The others are *old*.

    Args:
        evolution: the loop.
        state: of the run, to write.
        number: of the generation.
        champion: the generation whose model is in use.
    """

    def __init__(
        self, evolution: Evolution, state: State, number: int, champion: Generation
    ) -> None:
        assert champion.model is not None, "a champion has a model"
        self.evolution = evolution
        self.state = state
        self.number = number
        self.champion = champion
        self.model = Model.load(state.artifacts, champion.model)
        self.pool = Pool(state.journal, self.model, evolution.cache, number)
        self.now: Mask = self.pool.generation == number

    def play(self) -> None:
        """Takes the generation to its end."""
        journal = self.state.journal
        # All that is measured of the champion before anything is learned, poison included.
        arriving = journal.stage(self.number, "arriving", self._arriving)
        found = journal.stage(self.number, "suspicion", self._suspicions)
        suspicions = {name: Suspicion.from_json(looked["found"]) for name, looked in found.items()}
        self._hold([seq for looked in found.values() for seq in looked["held"]])
        usable, unknown = self.pool.kept, ~np.isin(self.pool.label, self.model.classes)
        names, counts = np.unique(self.pool.label[usable & unknown], return_counts=True)
        # A slip of the pen is no class. Rows of a rare one stay new until there are more.
        usable = usable & ~np.isin(self.pool.label, names[counts < _CLASS])
        self.new = usable & (unknown | (self.pool.generation > self.champion.number))
        self.old = usable & ~self.new
        self.classes = self.model.and_new(self.pool.label[self.new])
        # Rows to choose by: the new ones, and as many as memory allows of the old.
        tune = self.pool.part == "tune"
        self.new_tune = self.new & tune
        self.old_tune = self.pool.sample(self.old & tune, self.evolution.memory)
        trials = self._trials()
        # One that forgets would not pass the gate, however well it does on new rows.
        challenger = max(
            (t for t in trials if t["model"]),
            key=lambda t: (t["forgotten"] <= self.evolution.gate.tolerance, t["reward"]),
            default=None,
        )
        result = journal.stage(self.number, "judged", lambda: self._judge(challenger))
        beside: dict[str, Any] = {
            name: journal.stage(self.number, f"beside:{name}", partial(self._beside, name))
            for name in self.evolution.beside
        }
        verdict = Verdict.from_json(result["verdict"])
        reasons = list(verdict.reasons)
        for name, suspicion in suspicions.items():
            reasons += [f"{name} is held back: {reason}" for reason in suspicion.reasons]
        self._close(verdict.promote, reasons, challenger, trials, result, beside, arriving)

    # ---------------------------------------------------------------- steps

    def _arriving(self) -> dict[str, Any]:
        """Accuracy on the rows of this generation, of models that have learned none of them."""
        rows = self.now & self.pool.labelled
        found = {"champion": accuracy_of(self.model, self.pool, rows)}
        for name in self.evolution.beside:
            model = self._baseline(name)
            seen = self.pool.encoded_by(model, self.evolution.cache)
            found[name] = accuracy_of(model, seen, rows)
        return {name: finite(value) for name, value in found.items()}

    def _suspicions(self) -> dict[str, Any]:
        """Looks at the labels of each source that is not trusted; names the rows to hold back."""
        pool, known = self.pool, self.pool.kept
        held_out = known & (pool.part != "train") & (pool.generation <= self.champion.number)
        trusted = pool.sample(held_out, _ROWS)
        classes = self.model.and_new(pool.label[known])
        reference = self._judged(trusted, classes)
        looked = {}
        for name, rows in self._untrusted():
            found = suspect(
                self._judged(rows, classes), reference, classes, seed=self.evolution.seed
            )
            held = pool.seq[rows].tolist() if found.suspect else []
            looked[name] = {"found": found.to_json(), "held": held}
        return looked

    def _untrusted(self) -> Iterator[tuple[str, Mask]]:
        """Rows that are looked at together, with a name.

        Of few rows nothing can be told. So those of a source that come little by little are looked
        at with the ones of it that no champion has learned yet; and if that does not do, sources
        are taken together, as one who gives many names is none of them for long.
        """
        pool = self.pool
        unlearned = pool.kept & (pool.generation > self.champion.number)
        few: list[str] = []
        by_source: dict[str, list[int]] = {}
        for number in np.flatnonzero(unlearned).tolist():
            by_source.setdefault(pool.source[number], []).append(number)
        for source in dict.fromkeys(pool.source[self.now].tolist()):
            if any(fnmatchcase(source, pattern) for pattern in self.evolution.trusted):
                continue
            rows = np.zeros_like(unlearned)
            rows[by_source.get(source, [])] = True
            if (rows & self.now).sum() >= FEWEST:
                rows &= self.now
            if rows.sum() < FEWEST:
                few.append(source)
            else:
                yield source, rows
        if few:
            rows = np.zeros_like(unlearned)
            rows[[number for source in few for number in by_source.get(source, [])]] = True
            yield "; ".join(few[:3]) + "; ..." * (len(few) > 3), rows

    def _judged(self, rows: Mask, classes: tuple[str, ...]) -> Judged:
        predicted = self.model.predict_encoded(self.pool.select(rows))
        labels = self.pool.labels(rows, classes).numpy()
        return Judged(padded(predicted.probabilities, len(classes)), labels, predicted.features)

    def _hold(self, seqs: list[int]) -> None:
        """Keeps rows out of everything, held-out ones too."""
        held = self.pool.kept & np.isin(self.pool.seq, seqs)
        if not held.any():
            return
        with self.state.journal.writing():
            self.state.journal.execute_many(
                "UPDATE records SET status = 'held' WHERE seq = ?",
                [(seq,) for seq in self.pool.seq[held].tolist()],
            )
        self.pool.kept &= ~held

    def _trials(self) -> list[dict[str, Any]]:
        """Grows all challengers, each a step of its own."""
        if not (self.new & (self.pool.part == "train")).any():
            return []
        journal, optimisation = self.state.journal, self.evolution.optimisation
        plan = journal.stage(
            self.number,
            "plan",
            lambda: optimisation.plan(
                journal, self.evolution.training, (self.evolution.seed, self.number)
            ),
        )
        return [
            journal.stage(self.number, f"trial:{n}", partial(self._trial, trial))
            for n, trial in enumerate(plan)
        ]

    def _trial(self, trial: dict[str, Any]) -> dict[str, Any]:
        evolution, pool = self.evolution, self.pool
        began = time.process_time()
        wider = self.model.knowing(self.classes, evolution.seed)
        train = pool.part == "train"
        new = pool.examples(self.new & train, wider.classes)
        old = pool.examples(pool.sample(self.old & train, evolution.memory), wider.classes)
        rule = evolution.training.rule(wider, trial["settings"]["adapt"])
        phi = evolution.optimisation.phi(
            self.state.journal, self.state.artifacts, rule, trial, evolution.seed
        )
        try:
            # The same rows for every challenger, so that they differ in what is tried alone.
            grown, steps = evolution.training.grow(
                wider,
                new,
                old,
                phi=phi,
                settings=trial["settings"],
                seed=(evolution.seed, self.number),
            )
        except DivergedError:
            return {**trial, "model": None, "reward": None, "steps": 0, "seconds": 0.0}
        tune = self.new_tune | self.old_tune
        model = grown.calibrated(pool.select(tune), pool.labels(tune, grown.classes))
        model.facts |= {
            "generation": self.number,
            "parent": self.champion.number,
            "settings": trial["settings"],
            "steps": steps,
        }
        return {
            **trial,
            "model": model.save(self.state.artifacts),
            "reward": self._reward(model),
            "forgotten": self._forgotten(model),
            "steps": steps,
            "seconds": time.process_time() - began,
        }

    def _reward(self, model: Model) -> float:
        """Minus the loss on rows to choose by, where new and old data count alike."""
        losses = []
        for rows in (self.new_tune, self.old_tune):
            if rows.any():
                p = padded(
                    model.predict_encoded(self.pool.select(rows)).probabilities, len(self.classes)
                )
                right = p[np.arange(len(p)), self.pool.labels(rows, self.classes).numpy()]
                losses.append(-float(np.log(right.clip(FLOOR)).mean()))
        return -float(np.mean(losses)) if losses else 0.0

    def _forgotten(self, model: Model) -> float:
        """Accuracy that is lost on old rows to choose by."""
        if not self.old_tune.any():
            return 0.0
        return self._remembered - accuracy_of(model, self.pool, self.old_tune)

    @cached_property
    def _remembered(self) -> float:
        """Accuracy of the champion on old rows to choose by, for all challengers."""
        return accuracy_of(self.model, self.pool, self.old_tune)

    def _judge(self, challenger: dict[str, Any] | None) -> dict[str, Any]:
        """Champion and challenger on rows that neither was trained on or chosen by."""
        gate = self.pool.part == "gate"
        new = self.new & gate
        old = self.pool.sample(self.old & gate, self.evolution.memory)
        found: dict[str, Any] = {"champion": self._measured(self.model, new, old)}
        if challenger is None:
            reason = "no challenger: all rows of this generation are held back"
            if self.pool.kept[self.now].any():
                reason = "no challenger: every one of them diverged, or there was no training row"
            return {**found, "verdict": Verdict(False, (reason,)).to_json(), "scores": None}
        model = Model.load(self.state.artifacts, challenger["model"])
        costs = (
            self._cost(self.model, self.champion.summary.get("seconds", 0.0)),
            self._cost(model, challenger["seconds"]),
        )
        sets = {
            name: self._compare(model, rows, costs) for name, rows in (("new", new), ("old", old))
        }
        sets["anchor"] = self._beside_anchor(model, costs)
        verdict = self.evolution.gate.decide(sets["new"], sets["old"], sets["anchor"])
        scores = self.state.artifacts.put_json(
            {name: found and found.to_json() for name, found in sets.items()}
        )
        return {
            **found,
            "challenger": self._measured(model, new, old),
            "verdict": verdict.to_json(),
            "scores": scores,
        }

    def _beside_anchor(self, model: Model, costs: tuple[Cost, Cost]) -> Comparison | None:
        """The challenger beside the earliest champion that is kept, on what was old to that one."""
        journal = self.state.journal
        number = min(journal.recent_champions(self.evolution.keep))
        name = journal.generations()[number].model
        if number >= self.champion.number or name is None:
            return None
        earlier = Model.load(self.state.artifacts, name)
        if earlier.classes != self.classes[: len(earlier.classes)]:
            return None  # after a rollback the classes may have come in another order
        rows = self.old & (self.pool.part == "gate") & (self.pool.generation <= number)
        return self._compare(model, rows, costs, champion=earlier)

    def _compare(
        self,
        model: Model,
        rows: Mask,
        costs: tuple[Cost, Cost],
        champion: Model | None = None,
    ) -> Comparison | None:
        if not rows.any():
            return None
        inputs = self.pool.select(rows)
        usual, challenger = (
            padded(m.predict_encoded(inputs).probabilities, len(self.classes))
            for m in (champion or self.model, model)
        )
        return compare(
            usual,
            challenger,
            self.pool.labels(rows, self.classes).numpy(),
            self.classes,
            weights=self.pool.weight[rows],
            costs=costs,
            confidence=self.evolution.gate.confidence,
            seed=self.evolution.seed,
        )

    def _cost(self, model: Model, seconds: float) -> Cost:
        texts = self.pool.text[:_TIMED]
        model.predict(texts[:1])
        began = time.perf_counter()
        model.predict(texts)
        each = 1e6 * (time.perf_counter() - began) / max(1, len(texts))
        return Cost(seconds, sum(p.numel() for p in model.learner.parameters()), each)

    def _measured(self, model: Model, new: Mask, old: Mask) -> dict[str, float | None]:
        return {
            "new": finite(accuracy_of(model, self.pool, new)),
            "old": finite(accuracy_of(model, self.pool, old)),
        }

    def _beside(self, name: baselines.Baseline) -> dict[str, Any]:
        evolution, pool = self.evolution, self.pool
        advanced = baselines.advance(
            name,
            self._baseline(name),
            pool,
            pretrained=evolution.pretrained,
            training=evolution.training,
            cache=evolution.cache,
            seed=(evolution.seed, self.number),
        )
        gate = pool.part == "gate"
        seen = pool.encoded_by(advanced.model, evolution.cache)
        after = {
            kind: finite(accuracy_of(advanced.model, seen, rows & gate))
            for kind, rows in (("new", self.new), ("old", self.old))
        }
        return {
            "model": advanced.model.save(self.state.artifacts),
            "seconds": advanced.seconds,
            **after,
        }

    def _baseline(self, name: str) -> Model:
        return Model.load(self.state.artifacts, self.state.journal.state(f"beside:{name}"))

    # ---------------------------------------------------------------- the end

    def _close(
        self,
        promote: bool,
        reasons: list[str],
        challenger: dict[str, Any] | None,
        trials: list[dict[str, Any]],
        result: dict[str, Any],
        beside: dict[str, Any],
        arriving: dict[str, Any],
    ) -> None:
        """Writes all that follows from the generation, in one transaction."""
        evolution, journal = self.evolution, self.state.journal
        if promote:
            assert challenger is not None, "something was promoted"
            model = Model.load(self.state.artifacts, challenger["model"])
            evolution.watch_from(self.state, model, self.pool, self.new_tune | self.old_tune)
        learned = evolution.optimisation.learn(
            journal,
            self.state.artifacts,
            evolution.training,
            self.model,
            trials,
            evolution.seed,
            partial(self._reward, self.model),
        )
        after = result["challenger" if promote else "champion"]
        summary = {
            "records": int(self.now.sum()),
            "held": int((self.now & ~self.pool.kept).sum()),
            "arriving": arriving["champion"],
            "new_accuracy": after["new"],
            "old_accuracy": after["old"],
            "new_rows": int((self.new & (self.pool.part == "gate")).sum()),
            "old_rows": int((self.old & (self.pool.part == "gate")).sum()),
            "seconds": sum(trial["seconds"] for trial in trials),
            "settings": challenger and challenger["settings"],
            "beside": {
                name: {**{k: v for k, v in b.items() if k != "model"}, "arriving": arriving[name]}
                for name, b in beside.items()
            },
        }
        with journal.writing():
            journal.finish(
                self.number,
                "promoted" if promote else "kept",
                reasons,
                model=challenger["model"] if promote and challenger else None,
                scores=result["scores"],
                summary=summary,
            )
            if promote:
                journal.crown(self.number, "promoted")
                journal.set_state("monitor", evolution.monitor.state_dict())
            for name, value in learned.items():
                journal.set_state(name, value)
            for name, found in beside.items():
                journal.set_state(f"beside:{name}", found["model"])


def accuracy_of(model: Model, pool: Pool, rows: Mask) -> float:
    """Share of labelled rows that a model gets right, NaN where there are none.

    Args:
        model: any whose encoder has encoded the pool.
        pool: records.
        rows: which of them; a class that the model does not know is an error.
    """
    if not rows.any():
        return math.nan
    guess = model.predict_encoded(pool.select(rows)).probabilities.argmax(axis=1)
    return float((guess == pool.labels(rows, model.classes).numpy()).mean())


def finite(value: float) -> float | None:
    """A number as JSON knows it: None where there is none.

    >>> finite(float("nan")), finite(0.5)
    (None, 0.5)
    """
    return value if math.isfinite(value) else None


def padded(probabilities: NDArray[np.float32], classes: int) -> NDArray[np.float64]:
    """Probabilities over more classes, zero for those that the model does not know.

    Args:
        probabilities: ``[rows, known classes]``.
        classes: how many there are.

    >>> padded(np.ones((1, 1), np.float32), 2)
    array([[1., 0.]])
    """
    wide = np.zeros((len(probabilities), classes))
    wide[:, : probabilities.shape[1]] = probabilities
    return wide
