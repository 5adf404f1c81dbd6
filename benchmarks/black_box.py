"""Inner steps of black-box episodes beside a bare loop of ``torch.optim.Adam``.

    python benchmarks/black_box.py
    python benchmarks/black_box.py --learners head --rounds 40

Evolution strategies and policy gradients need no graph through the inner loop, so that a step of
theirs should cost what a step of ordinary training costs. The bare loop is the shortest that there
is: the learner's own parameters, ``loss.backward()``, ``torch.optim.Adam`` with its defaults (a
fresh one an episode), ``zero_grad``. Ours play the same K steps on the same rows, from the same
theta, with a rule that starts as Adam:

- *steps*: the inner steps alone, ``adapt`` without a graph, under ``Gains``;
- *ES*: ``EvolutionStrategies`` with one antithetic pair and ``Gains``: two runs, each with noise on
  phi and with one evaluation of the query set, which the bare loop does not have;
- *ES, steps only*: the same without the time that the query evaluations take by themselves;
- *REINFORCE*: the same for ``Reinforce`` with two actions;
- *actor-critic*: ``ActorCritic`` with two rollouts and ``Controller``, which scores the query set
  after every step, as its reward is the improvement by that step, or after every tenth.

Both must be at the same theta after K steps of Adam, or the benchmark stops. They take turns in one
process on one thread; figures are medians of CPU seconds and of the ratios within a round, with
95% intervals. A ratio of 1 means that the rule and the framework cost nothing; the aim is 0.9.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from meta_step import SMALL_BERT, draw, interval, loss_of
from numpy import array, median
from rich import box
from rich.console import Console
from rich.table import Table

from lightning_evolve.estimators import (
    ActorCritic,
    Episode,
    Estimator,
    EvolutionStrategies,
    Reinforce,
)
from lightning_evolve.inner_loop import Adapted, adapt, detached, logits
from lightning_evolve.learners import BERT, CNN, LSTM, Head
from lightning_evolve.meta_learners import Adam, Controller, Gains, MetaLearner
from lightning_evolve.rewards import NegativeLoss
from lightning_evolve.tasks import DataSpec

ALPHA, WAYS, VOCABULARY = 1e-3, 5, 2000
SETTINGS = {
    "lstm": (LSTM, DataSpec(WAYS, VOCABULARY)),
    "cnn": (CNN, DataSpec(WAYS, shape=(1, 28, 28))),
    "bert": (partial(BERT, config=SMALL_BERT), DataSpec(WAYS, VOCABULARY)),
    "head": (Head, DataSpec(WAYS, shape=(384,))),
}


class Sides:
    """A learner and a task, and the ways to train the one on the other.

    Args:
        name: of the setting.
        steps: inner steps K.
    """

    def __init__(self, name: str, steps: int) -> None:
        factory, spec = SETTINGS[name]
        torch.manual_seed(0)
        self.learner, self.steps = factory(spec).requires_grad_(False), steps
        (self.task,) = draw(spec, 1, 5)
        self.theta = dict(self.learner.named_parameters())
        self.trained = copy.deepcopy(self.learner).requires_grad_(True)

    def bare(self) -> None:
        """Trains a module by hand."""
        learner, support = self.trained, self.task.support[0]
        with torch.no_grad():
            for p, start in zip(learner.parameters(), self.theta.values(), strict=True):
                p.copy_(start)
        optimizer = torch.optim.Adam(learner.parameters(), lr=ALPHA)
        for _ in range(self.steps):
            loss_of(learner(**support.inputs), support).backward()
            optimizer.step()
            optimizer.zero_grad()

    def walk(self, rule: MetaLearner) -> Adapted:
        """Takes the inner steps alone."""
        return adapt(
            self.learner, rule, detached(self.theta), self.task, alpha=ALPHA, steps=self.steps
        )

    def play(self, rule: MetaLearner, estimator: Estimator) -> None:
        """Plays an episode."""
        theta = detached(self.theta)
        episode = Episode(
            self.learner,
            rule,
            Adapted(theta, rule.init(theta)),
            self.task,
            ALPHA,
            self.steps,
            NegativeLoss(),
            (self.steps,),
        )
        estimator(episode)

    def query(self) -> None:
        """Evaluates the query set once."""
        with torch.no_grad():
            NegativeLoss()(
                logits(self.learner, self.theta, self.task.query), self.task.query.labels
            )

    def check(self) -> None:
        """Stops where the two sides do not compute the same."""
        ours = self.walk(Adam(self.theta)).theta
        self.bare()
        for name, p in self.trained.named_parameters():
            # Rounding turns the sign of a tiny gradient, and Adam makes a whole step of it.
            share = ((p - ours[name]).abs() > 1e-4).double().mean()
            if share > 1e-3:
                sys.exit(f"{name} of the two sides is not the same in {share:.2%} of its numbers")


def measure(name: str, given: argparse.Namespace) -> list[list[str]]:
    """Times all on one learner.

    Args:
        name: of the setting.
        given: the command line.

    Returns:
        Rows of the table.
    """
    sides = Sides(name, given.steps)
    sides.check()
    gains, controller = Gains(sides.theta, horizon=given.steps), Controller(sides.theta)
    # What is played, runs of K steps in it, and query evaluations to be left out.
    kinds: dict[str, tuple[Callable[[], object], int, int]] = {
        "bare Adam": (sides.bare, 1, 0),
        "steps": (partial(sides.walk, gains), 1, 0),
        "ES": (partial(sides.play, gains, EvolutionStrategies()), 2, 2),
        "REINFORCE": (partial(sides.play, gains, Reinforce(population=2)), 2, 2),
        "actor-critic": (
            partial(sides.play, controller, ActorCritic(rollouts=2)),
            2,
            2 * given.steps + 1,  # theta_0 once for both runs
        ),
        "actor-critic, a score in 10 steps": (
            partial(sides.play, controller, ActorCritic(rollouts=2, score_every=10)),
            2,
            2 * (given.steps // 10 + (given.steps % 10 > 0)) + 1,
        ),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in [*kinds, "query"]}

    def timed(play: Callable[[], object]) -> float:
        began = time.process_time()
        play()
        return time.process_time() - began

    turns = list(kinds)
    for _ in range(given.rounds + 1):
        seconds["query"].append(timed(sides.query))
        for kind in turns:
            seconds[kind].append(timed(kinds[kind][0]) / kinds[kind][1])
        turns.append(turns.pop(0))
    found = {kind: array(times[1:]) for kind, times in seconds.items()}
    rows = []
    for kind, (_, runs, queries) in kinds.items():
        variants = {kind: found[kind]}
        if queries:
            without = found[kind] - median(found["query"]) * queries / runs
            variants[f"{kind}, steps only"] = without
        for variant, times in variants.items():
            middle, low, high = interval(found["bare Adam"] / times)
            per_second = f"{given.steps / median(times):.1f}"
            ratio = [f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]
            rows.append([name, variant, per_second, *(ratio if kind != "bare Adam" else ["", ""])])
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learners", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=20, help="of turns (default: 20)")
    parser.add_argument("--steps", type=int, default=20, help="inner steps (default: 20)")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("--rounds must be at least 2 for an interval")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    table = Table(
        title=f"Inner steps a CPU-second over the bare loop's, K = {given.steps}",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("learner", "", "steps/CPU s", "ratio", "95% interval"):
        table.add_column(heading, justify="left" if heading in ("learner", "") else "right")
    for name in given.learners:
        for row in measure(name, given):
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
