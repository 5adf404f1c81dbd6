"""Time and memory of every estimator against the number of inner steps K, on the LSTM.

    python benchmarks/unroll.py
    python benchmarks/unroll.py --steps 5 10 --estimators "exact" "checkpoint 5"

One task of 5 classes with 5 rows of 32 tokens, the LSTM with its default sizes. A cell holds the
CPU milliseconds an inner step, everything that the estimate does included, and the most memory in
MiB that the process had beyond what it had before (resident memory, read as Linux with glibc tells
it). Each estimate is made in a forked process of its own on one thread, ``--rounds`` times in turn,
and medians are shown. *exact* is left out above ``--limit`` MiB; the last line takes its memory at
the largest K from a straight line through those that it was measured at, beside *checkpoint 5*,
whose gradient is the same bit for bit.

*ES*, *persistent ES* and *REINFORCE* make two runs, *actor-critic* one with an evaluation of the
query set a step. *persistent ES* is an outer step of 5 inner steps, whatever K is. *implicit* and
*Reptile* learn the initial theta under SGD, the others phi of ``Gains`` or ``Controller``.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from meta_step import TEXT, draw
from rich.console import Console
from rich.table import Table

from lightning_evolve.estimators import (
    ActorCritic,
    Episode,
    Estimator,
    EvolutionStrategies,
    FirstOrder,
    Implicit,
    PersistentES,
    Reinforce,
    Reptile,
    Unrolled,
)
from lightning_evolve.inner_loop import Adapted, detached
from lightning_evolve.learners import LSTM
from lightning_evolve.meta_learners import SGD, Controller, Gains, MetaLearnerFactory
from lightning_evolve.rewards import NegativeLoss

WINDOW = 5
ESTIMATORS: dict[str, tuple[Callable[[], Estimator], MetaLearnerFactory]] = {
    "exact": (Unrolled, Gains),
    "checkpoint 5": (lambda: Unrolled(checkpoint=WINDOW), Gains),
    "truncated at 5": (lambda: Unrolled(truncation=WINDOW), Gains),
    "first order": (FirstOrder, Gains),
    "implicit": (Implicit, SGD),
    "Reptile": (Reptile, SGD),
    "ES": (EvolutionStrategies, Gains),
    "persistent ES": (lambda: PersistentES(window=WINDOW), Gains),
    "REINFORCE": (lambda: Reinforce(population=2), Gains),
    "actor-critic": (lambda: ActorCritic(rollouts=1), Controller),
}


def estimate(name: str, steps: int) -> tuple[float, float]:
    """Makes one estimate.

    Args:
        name: of the estimator.
        steps: inner steps K.

    Returns:
        CPU milliseconds an inner step, and the peak of memory in MiB.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    learner = LSTM(TEXT).requires_grad_(False)
    (task,) = draw(TEXT, 1, 5)
    factory, rule = ESTIMATORS[name]
    estimator = factory()
    theta = dict(learner.named_parameters())
    meta_learner = rule(detached(theta))
    start = {n: p.requires_grad_(rule is SGD) for n, p in theta.items()}

    def play(length: int) -> float:
        episode = Episode(
            learner=learner,
            meta_learner=meta_learner,
            start=Adapted(start, meta_learner.init(detached(theta))),
            task=task,
            alpha=1e-3,
            steps=length,
            reward=NegativeLoss(),
            measured=tuple(range(WINDOW, length + 1, WINDOW)),
            damping=estimator.damping,
        )
        began = time.process_time()
        estimator(episode)
        return time.process_time() - began

    play(WINDOW)  # what is made once, such as the plans of oneDNN
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator keeps for itself
    with open("/proc/self/status") as status:
        before = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    seconds = play(steps)
    played = WINDOW if isinstance(estimator, PersistentES) else steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return 1000 * seconds / played, peak / 1024


def alone(name: str, steps: int) -> tuple[float, float]:
    """Runs :func:`estimate` in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(estimate, (name, steps))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    everything = list(ESTIMATORS)
    parser.add_argument("--estimators", nargs="+", choices=everything, default=everything)
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 10, 20, 40, 80, 200])
    parser.add_argument("--rounds", type=int, default=3, help="of turns (default: 3)")
    parser.add_argument("--limit", type=int, default=2000, help="MiB of exact (default: 2000)")
    given = parser.parse_args()
    if any(steps % WINDOW for steps in given.steps):
        parser.error(f"--steps must be multiples of {WINDOW}")
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(given.rounds):
        for name in given.estimators:
            for steps in given.steps:
                exact = [(k, m) for (n, k), [(_, m), *_] in found.items() if n == "exact"]
                ahead = max((m / k * steps for k, m in exact), default=0)
                if name == "exact" and ahead > given.limit and ("exact", steps) not in found:
                    continue
                found.setdefault((name, steps), []).append(alone(name, steps))
    medians = {key: np.median(pairs, axis=0) for key, pairs in found.items()}
    table = Table(title="CPU ms a step, MiB")
    table.add_column("K")
    for steps in given.steps:
        table.add_column(str(steps), justify="right")
    for name in given.estimators:
        cells = [medians.get((name, steps)) for steps in given.steps]
        table.add_row(name, *("-" if c is None else f"{c[0]:.1f}, {c[1]:.0f}" for c in cells))
    Console().print(table)
    exact = {k: m for (n, k), m in medians.items() if n == "exact"}
    last = medians.get(("checkpoint 5", max(given.steps)))
    if len(exact) > 1 and last is not None:
        slope, constant = np.polyfit(list(exact), [m[1] for m in exact.values()], 1)
        expected, time_a_step = slope * max(given.steps) + constant, exact[max(exact)][0]
        print(
            f"At K = {max(given.steps)} checkpoint 5 takes {last[1]:.0f} MiB, 1/"
            f"{expected / last[1]:.1f} of what exact would take ({expected:.0f}), in "
            f"{last[0] / time_a_step:.2f} times the time a step of exact at K = {max(exact)}"
        )


if __name__ == "__main__":
    main()
