"""How soon, and how well, update rules fit tasks that they have never seen, beside tuned rivals.

    python benchmarks/held_out.py run topics-lstm digits-cnn --out results
    python benchmarks/held_out.py run clinc150-bert --data FOLDER --rules general text --out results
    python benchmarks/held_out.py table results

A cell is a family of tasks and a learner. ``FOLDER`` holds the families that do not come with the
package, each a file or folder that ``--data.source`` would take: ``clinc150``, ``banking77`` and
``fashion_mnist``. All tasks are of classes that are in no training task, and five seeds give five
initial thetas and different tasks.

The rates of Adam, of Adam with two groups, of AdamW and of Muon are tuned on a grid of 7 points a
rate, which grows where the best is on its edge, on training tasks of all seeds, for what the rules
are meta-trained for: the mean query loss along the way. ``adam for lowest loss`` is tuned for the
lowest query loss that it ever has instead, whatever comes after it. The rules that come with the
package take their one default rate. ``family`` is the general rule as it is trained for the cell:
its rate tuned as Adam's is, then phi by more meta-training on training tasks of the cell itself
(evolution strategies, see ``FAMILY``). ``adam at 0.001`` and so on are Adam at one rate for all
cells, of which 0.001 is torch's default.

*Mean loss* is that along the way, for which all are tuned and trained. *Steps* is when the mean
over tasks is down to the lowest that tuned Adam ever has, to within 0.1%; the ratio of Adam's own
steps to them has a bootstrap interval over the tasks. The column after it is the same beside
``adam for lowest loss``, and below the table stands what the rules are beside Adam at each of the
single rates, whose lowest loss is then the target.

What is measured is kept in ``--out``, a file for each method: a run that is interrupted goes on,
and a method whose file is deleted is measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from lightning_evolve.data.encoders import (
    CheckpointTokenizer,
    Encoder,
    FrozenFeatures,
    Pixels,
    Words,
)
from lightning_evolve.estimators import Episode, EvolutionStrategies
from lightning_evolve.evaluation.comparison import floor_row
from lightning_evolve.evaluation.curves import Curves, adaptation_curves
from lightning_evolve.evaluation.rivals import Rival, tuned_rivals
from lightning_evolve.evaluation.statistics import first_reached, interval
from lightning_evolve.evaluation.tuning import tune
from lightning_evolve.files import replacing, write_json
from lightning_evolve.inner_loop import Adapted, detached
from lightning_evolve.learners import BERT, CNN, LSTM, Head
from lightning_evolve.learners.base import Learner, LearnerFactory
from lightning_evolve.meta_learners import Adam, MetaLearner
from lightning_evolve.modules.building import build
from lightning_evolve.pretrained import load_rule
from lightning_evolve.rewards import RelativeLoss
from lightning_evolve.streams import EpisodeStream
from lightning_evolve.tasks import Task, Tensors

FAR = 10**6  # tuning tasks are training tasks that no rule has met: far along the stream
TUNED = ("adam", "adam_groups", "adamw", "muon")
LOWEST = "adam for lowest loss"
SINGLE = {f"adam at {rate:g}": rate for rate in (1e-3, 3e-3, 1e-2, 3e-2)}
OTHERS = (LOWEST, *SINGLE)  # Adams that methods are set beside, as they are beside the tuned one
FAMILY = {"outer_steps": 25, "tasks": 3, "beta": 0.05, "sigma": 0.1, "floor": 0.02}
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
}
TEXTS = {"topics": "topics", "docs": "docstrings", "clinc150": None, "banking77": None}
IMAGES = {"digits": ("digits", 8), "fashion": ("fashion_mnist", 14)}


class Cell(NamedTuple):
    """A family and a learner.

    Args:
        source: of the data; None for one in the folder that was named.
        encoder: of its rows.
        learner: what adapts, all of it.
        ways: classes of a task.
        shots: support and query rows of a class.
        steps: inner steps K.
    """

    source: str | None
    encoder: Encoder
    learner: LearnerFactory
    ways: int = 5
    shots: int = 10
    steps: int = 40


def cells() -> dict[str, Cell]:
    """Returns all cells by name."""
    found = {}
    small = partial(LSTM, embedding_size=64, hidden_size=64)
    for family, source in TEXTS.items():
        found[f"{family}-lstm"] = Cell(source, Words(max_length=24), small)
        found[f"{family}-bert"] = Cell(source, Words(max_length=24), partial(BERT, config=SMALL))
        if family != "topics":  # made-up words say nothing to a pretrained encoder
            found[f"{family}-minilm_head"] = Cell(
                source, FrozenFeatures(checkpoint="minilm"), partial(Head, hidden_size=0)
            )
            tokens = CheckpointTokenizer(checkpoint="minilm", max_length=12)
            minilm = partial(BERT, checkpoint="minilm")
            found[f"{family}-minilm_all"] = Cell(source, tokens, minilm, ways=5, shots=3, steps=12)
    for family, (source, size) in IMAGES.items():
        own = source if family == "digits" else None
        found[f"{family}-cnn"] = Cell(
            own, Pixels(size=size), partial(CNN, channels=(16, 32)), ways=3
        )
    return found


def stream_of(name: str, cell: Cell, folder: Path | None) -> EpisodeStream:
    """Returns the tasks of a cell.

    Args:
        name: of the cell.
        cell: which one.
        folder: where the families are that do not come with the package.
    """
    family = name.partition("-")[0]
    source = cell.source
    if source is None:
        if folder is None:
            raise SystemExit(f"{name} needs --data FOLDER with {family} in it")
        stored = {"fashion": "fashion_mnist"}.get(family, family)
        source = str(folder / stored)
    stream = EpisodeStream(
        source=source,
        encoder=cell.encoder,
        ways=cell.ways,
        shots=cell.shots,
        queries=cell.shots,
        class_fractions=(0.4, 0.3, 0.3),
    )
    stream.setup()
    return stream


def start_of(stream: EpisodeStream, cell: Cell, seed: int) -> tuple[Learner, Tensors]:
    """Returns the learner and the initial theta of a seed."""
    learner = build(cell.learner, stream.spec, seed).requires_grad_(False)
    return learner, detached(dict(learner.named_parameters()))


def joined(parts: list[Curves]) -> Curves:
    """Puts the tasks of several seeds together."""
    return Curves(
        parts[0].steps,
        *(np.concatenate([getattr(p, f) for p in parts]) for f in Curves._fields[1:]),
    )


def measure(
    stream: EpisodeStream,
    cell: Cell,
    rule: Callable[[Tensors], MetaLearner],
    rate: float,
    tasks: list[list[Task]],
    every: int = 1,
) -> Curves:
    """Returns the curves of a rule on the tasks of each seed, measured every so many steps."""
    parts = []
    for seed, own in enumerate(tasks):
        learner, theta = start_of(stream, cell, seed)
        parts.append(
            adaptation_curves(
                learner,
                rule(theta),
                theta,
                own,
                alpha=rate,
                steps=cell.steps,
                measured=range(0, cell.steps + 1, every),
            )
        )
    return joined(parts)


def meta_train(stream: EpisodeStream, cell: Cell, rule: MetaLearner, rate: float) -> MetaLearner:
    """Goes on meta-training a rule on the training tasks of a cell.

    Args:
        stream: the cell's tasks.
        cell: which one.
        rule: whose phi is moved.
        rate: inner step size.

    Returns:
        The rule for the cell's learner, with the very same phi.
    """
    estimator = EvolutionStrategies(sigma=FAMILY["sigma"])
    _, theta = start_of(stream, cell, 0)
    rule = rule.over(theta)
    outer = torch.optim.Adam(rule.parameters(), lr=FAMILY["beta"])
    steps = int(FAMILY["outer_steps"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, steps)
    measured = tuple(sorted({math.ceil(cell.steps * i / 10) for i in range(1, 11)}))
    for step in range(steps):
        outer.zero_grad()
        for number in range(int(FAMILY["tasks"])):
            index = 1000 + step * int(FAMILY["tasks"]) + number
            # Another initial theta each time, none of them one that is tested.
            learner, theta = start_of(stream, cell, index)
            episode = Episode(
                learner=learner,
                meta_learner=rule,
                start=Adapted(theta, rule.init(theta)),
                task=stream.tasks("train", 1, index)[0],
                alpha=rate,
                steps=cell.steps,
                reward=RelativeLoss(FAMILY["floor"]),
                measured=measured,
            )
            for name, gradient in estimator(episode).phi.items():
                p = rule.phi()[name]
                p.grad = -gradient if p.grad is None else p.grad - gradient
        outer.step()
        schedule.step()
    return rule


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures a cell.

    Args:
        name: of the cell.
        options: of the command line.
    """
    cell, begun = cells()[name], time.process_time()
    stream = stream_of(name, cell, options.data)
    seeds = range(options.seeds)
    tuning = [stream.tasks("train", options.tuning, FAR + s * options.tuning) for s in seeds]
    test = [stream.tasks("test", options.tasks, s * options.tasks) for s in seeds]

    tried: dict[tuple[str, float], np.ndarray] = {}

    def tuning_curve(rule: Any, rate: float) -> np.ndarray:
        key = (repr(rule), rate)
        if key not in tried:
            tried[key] = measure(stream, cell, rule, rate, tuning, every=2).loss.mean(axis=0)
        return tried[key]

    def mean_loss(rule: Any, rate: float) -> float:
        return float(tuning_curve(rule, rate)[1:].mean())

    def lowest_loss(rate: float) -> float:
        # A rule that diverges late has had its lowest loss all the same.
        curve = tuning_curve(Adam, rate)
        return float(np.min(curve, initial=math.inf, where=np.isfinite(curve)))

    def kept(method: str, compute: Callable[[], tuple[Any, float, dict[str, float]]]) -> None:
        """Measures a method, or takes what was measured before."""
        file = folder / f"{method}.npz"
        if not file.exists():
            rule, rate, setting = compute()
            got = measure(stream, cell, rule, rate, test)
            with replacing(file) as temporary, temporary.open("wb") as out:
                np.savez(out, setting=json.dumps(setting), **got._asdict())
        stored = np.load(file)
        curves[method] = Curves(*(stored[field] for field in Curves._fields))
        settings[method] = json.loads(str(stored["setting"]))

    def rival(method: str) -> tuple[Any, float, dict[str, float]]:
        if not chosen:
            learner, theta = start_of(stream, cell, 0)
            chosen.update(tuned_rivals(mean_loss, learner, theta, 3e-3, TUNED, 7))
            rate = tune(lowest_loss, 3e-3, 7)
            chosen[LOWEST] = Rival(Adam, rate, {"rate": rate})
        return chosen[method].rule, chosen[method].alpha, chosen[method].setting

    def saved_rule(saved: str) -> tuple[Any, float, dict[str, float]]:
        rule, config = load_rule(saved)
        return rule.over, config["alpha"], {"rate": config["alpha"]}

    def family_rule() -> tuple[Any, float, dict[str, float]]:
        rule, config = load_rule(options.rules[0])
        rate = tune(partial(mean_loss, rule.over), config["alpha"], 7)
        return meta_train(stream, cell, rule, rate).over, rate, {"rate": rate}

    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, Rival] = {}
    curves: dict[str, Curves] = {}
    settings: dict[str, dict[str, float]] = {}
    for method in (*TUNED, LOWEST):
        kept(method, partial(rival, method))
    for method, rate in SINGLE.items():
        kept(method, partial(lambda rate: (Adam, rate, {"rate": rate}), rate))
    for saved in options.rules:
        kept(Path(saved).name, partial(saved_rule, saved))
    if options.family:
        kept("family", family_rule)
    return {
        "cell": name,
        "seeds": options.seeds,
        "tasks": options.seeds * options.tasks,
        "steps": cell.steps,
        "cpu_seconds": time.process_time() - begun,
        "settings": settings,
        "floor": floor_row([t for own in test for t in own], stream.floor_features)["accuracy"],
        "methods": {
            method: summary(c, curves["adam"])
            | {f"ratio_to {other}": ratio(*reached(c, curves[other])) for other in OTHERS}
            for method, c in curves.items()
        },
    }


def summary(curves: Curves, adam: Curves) -> dict[str, Any]:
    """Returns accuracies, losses, steps and the ratio of Adam's steps to them, with intervals.

    Args:
        curves: of a method.
        adam: of tuned Adam, on the same tasks.
    """
    theirs, steps = reached(curves, adam)
    best = int(np.nanargmin(curves.loss.mean(axis=0)))
    return {
        "accuracy": interval(curves.accuracy[:, -1]),
        "accuracy_at_best": interval(curves.accuracy[:, best]),
        "loss": interval(curves.loss[:, -1]),
        "mean_loss": float(curves.loss[:, 1:].mean()),
        "best_loss": float(curves.loss.mean(axis=0)[best]),
        "best_step": best,
        "steps": float(steps[0]) if math.isfinite(steps[0]) else None,
        "ratio": ratio(theirs, steps),
    }


def reached(curves: Curves, adam: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps of an Adam and of a method to that Adam's lowest loss, with resamples."""
    losses = {"adam": adam.loss, "ours": curves.loss}
    theirs, steps = first_reached(losses, range(adam.loss.shape[1])).values()
    return theirs, steps


def ratio(theirs: np.ndarray, steps: np.ndarray) -> dict[str, float]:
    """Returns how many times fewer steps a method takes than an Adam, with an interval.

    Args:
        theirs: the Adam's steps, as of :func:`reached`.
        steps: the method's.
    """
    # Nothing is fewer than one step, and an Adam that only gets worse has its lowest loss at none.
    ratios = np.maximum(theirs, 1) / np.maximum(steps, 1)
    low, high = np.quantile(ratios[1:], [0.025, 0.975], method="nearest")
    return {"mean": float(ratios[0]), "low": float(low), "high": float(high)}


def table(folder: Path) -> str:
    """Returns the results of a folder as a table in Markdown.

    Args:
        folder: where :func:`run` has put them.
    """
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    lines = [
        "| cell | method | accuracy | mean loss | lowest | steps | times fewer | of lowest Adam |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ratios: dict[tuple[str, str], list[float]] = {}
    for result in results:
        for method, row in result["methods"].items():
            for kind in ("ratio", *(f"ratio_to {other}" for other in OTHERS)):
                ratios.setdefault((method, kind), []).append(row[kind]["mean"])
            lines.append(
                f"| {result['cell']} | {method} | {_shown(row['accuracy'])} "
                f"| {row['mean_loss']:.3f} | {row['best_loss']:.3f} "
                f"| {'never' if row['steps'] is None else format(row['steps'], '.0f')} "
                f"| {_ratio(row['ratio'])} | {_ratio(row['ratio_to ' + LOWEST])} |"
            )
        lines.append(f"| {result['cell']} | no learning | {_shown(result['floor'])} | | | | | |")
    for (method, kind), values in ratios.items():
        if method in (*TUNED, *OTHERS) and kind != "ratio":
            continue  # the question is where our rules stand
        lines.append(
            f"\n{method}, {kind}: interquartile mean {stats.trim_mean(values, 0.25):.2f}, "
            f"least {min(values):.2f}, {len(values)} cells"
        )
    return "\n".join(lines)


def _ratio(values: dict[str, float]) -> str:
    return f"{values['mean']:.2f} [{values['low']:.2f}, {values['high']:.2f}]"


def _shown(values: dict[str, float | None]) -> str:
    if values["mean"] is None:
        return "diverged"
    return f"{values['mean']:.3f} ± {values['mean'] - values['low']:.3f}"


def main() -> None:
    """Runs cells, or prints the table of those that were run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="measure cells")
    runs.add_argument("cells", nargs="+", choices=sorted(cells()), metavar="CELL")
    runs.add_argument("--data", type=Path, help="folder of the families that do not come along")
    runs.add_argument("--rules", nargs="*", default=["general", "text"], help="folders or names")
    runs.add_argument("--family", action="store_true", help="meta-train the first on each cell too")
    runs.add_argument("--seeds", type=int, default=5)
    runs.add_argument("--tasks", type=int, default=20, help="held-out tasks a seed")
    runs.add_argument("--tuning", type=int, default=2, help="training tasks a seed to tune on")
    runs.add_argument("--out", type=Path, required=True, help="folder of the results")
    shown = commands.add_parser("table", help="print what was measured")
    shown.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "table":
        print(table(options.folder))
        return
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.cells:
        write_json(options.out / f"{name}.json", run(name, options))
        print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main()
