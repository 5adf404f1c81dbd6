"""What the loop of continuous evolution comes to, beside simpler ways to live with a stream.

    python benchmarks/evolution.py experiments/evolution.yaml --seeds 5 --out results
    python benchmarks/evolution.py experiments/evolution_news.yaml --source FOLDER --out results

Runs the experiment once a seed into ``--out``; what is finished is not run again. Its first source
is a `Planned` one, and the last of its phases is the drift. All models are tested on the rows of
the plan's classes that are in no batch: no model has been trained, chosen or judged on them.

*before* are test rows of the phases before the last, *after* those of the last. *lost* is the
accuracy on *before* of the champion that met the drift, minus that of the model at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lightning_evolve.cli import main as lightning_evolve
from lightning_evolve.cli.evolution_parser import build
from lightning_evolve.data.cache import Cache
from lightning_evolve.evaluation.statistics import interval
from lightning_evolve.evolution.collection import Planned
from lightning_evolve.evolution.model import Model
from lightning_evolve.evolution.pool import encoded
from lightning_evolve.evolution.state import State
from lightning_evolve.files import write_json
from lightning_evolve.reports.evolution import WAYS, comparison

MOST = 1500  # rows to test on


def tested(model: Model, rows: list[tuple[str, str]]) -> float:
    """Accuracy of a model on texts with labels, which are encoded once for all models."""
    texts, labels = zip(*rows, strict=True)
    guess = model.predict_encoded(encoded(model, texts, Cache())).probabilities.argmax(axis=1)
    return float(
        np.mean([model.classes[n] == label for n, label in zip(guess, labels, strict=True)])
    )


def few(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """At most ``MOST`` rows, of which each is as likely."""
    order = np.random.default_rng(0).permutation(len(rows))[:MOST]
    return [rows[n] for n in sorted(order)]


def measure(run: Path, plan: Planned) -> dict[str, Any]:
    """Tests the models of a finished run."""
    *earlier, after = plan.rest()
    before, after = few(sorted({row for rows in earlier for row in rows})), few(after)
    drift = plan.batches - plan.phases[-1].generations
    with State(run) as state:
        journal = state.journal
        generations = journal.generations()
        met = max(s["generation"] for s in journal.champions() if s["generation"] < drift)
        champion = journal.champion()
        assert champion is not None
        names = {"champion": champion.model}
        names |= {way: journal.state(f"beside:{way}") for way in WAYS if way != "champion"}
        models = {way: Model.load(state.artifacts, name) for way, name in names.items() if name}
        usual = generations[met].model
        assert usual is not None
        had = tested(Model.load(state.artifacts, usual), before)
        ways = comparison(generations)
    found = {}
    for way, model in models.items():
        now = tested(model, before)
        arriving = ways[way]["arriving"]
        found[way] = {
            "before": now,
            "lost": had - now,
            "after": tested(model, after),
            "arriving": float(np.mean(arriving)),
            "arriving after the drift": float(np.mean(arriving[drift - 1 :])),
            "CPU seconds": ways[way]["seconds"],
        }
    promoted = sum(g.verdict == "promoted" for g in generations)
    rows = {"before": len(before), "after": len(after)}
    return {"ways": found, "promoted": promoted, "test rows": rows}


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds (default: 0)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", help="in place of the dataset that the experiment names")
    args, options = parser.parse_known_args()
    config = yaml.safe_load(Path(args.config).read_text())
    if args.source:
        config["sources"][0]["init_args"]["source"] = args.source
    args.out.mkdir(parents=True, exist_ok=True)
    experiment = args.out / "experiment.yaml"
    experiment.write_text(yaml.safe_dump(config))
    results = []
    for seed in range(args.first, args.first + args.seeds):
        run = args.out / f"seed-{seed}"
        if not (run / "tested.json").exists():
            begun = [f"--config={experiment}", f"--seed={seed}", *options]
            known = (run / "config.yaml").exists()
            code = lightning_evolve(["evolve", f"--run_dir={run}", *([] if known else begun)])
            if code:
                raise SystemExit(code)
            evolution, _ = build([f"--config={run / 'config.yaml'}"])
            plan = evolution.sources[0]
            assert isinstance(plan, Planned), "the first source has a plan"
            write_json(run / "tested.json", measure(run, plan))
        results.append(json.loads((run / "tested.json").read_text()))
    columns = list(results[0]["ways"]["champion"])
    print(f"| way | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for way in results[0]["ways"]:
        cells = []
        for column in columns:
            found = interval([result["ways"][way][column] for result in results])
            assert found["mean"] is not None
            assert found["high"] is not None
            digits = 1 if column == "CPU seconds" else 3
            cells.append(f"{found['mean']:.{digits}f} ±{found['high'] - found['mean']:.{digits}f}")
        print(f"| {WAYS[way]} | {' | '.join(cells)} |")
    gaps = [r["ways"]["scratch"]["after"] - r["ways"]["champion"]["after"] for r in results]
    print(f"\nafter the drift, below retraining on everything: {interval(gaps)}")
    print(f"promotions a run: {[result['promoted'] for result in results]}")
    print(f"test rows: {results[0]['test rows']}; {len(results)} seeds; mean ± 95% interval")


if __name__ == "__main__":
    main()
