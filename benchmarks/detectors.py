"""Detectors of a rising error beside river's, and beside one that always alarms.

    python benchmarks/detectors.py
    python benchmarks/detectors.py --seeds 30

Streams of 0 and 1, one a seed, the same for every detector. *Delay* is the mean number of rows from
the change to the next alarm, over the seeds in which there is one; *missed* counts the others.
*False* is alarms in a thousand rows at a constant error, *fall* the alarms of a stream after its
error has fallen, of which a trigger that retrains should have none. *Microseconds* is
CPU time a row.

The dummy alarms at every row: no delay, nothing missed. A delay means something only beside its
false alarms. river's detectors have their defaults, Page-Hinkley looking for rises alone; *ours* is
river's with our settings. Without river ours stand alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lightning_evolve.evolution.detectors import ADWIN, DDM, PageHinkley

BEFORE, AFTER, CONSTANT = 2000, 4000, 4000
RISES, FALLS, CONSTANTS = ((0.10, 0.35), (0.10, 0.18)), ((0.35, 0.10), (0.18, 0.10)), (0.10, 0.30)


class Updates(Protocol):
    """What is measured."""

    def update(self, value: float) -> bool:
        """Whether there is an alarm at this value."""


class Always:
    """Alarms at every row."""

    def update(self, value: float) -> bool:
        """Yes."""
        return True


class River:
    """A detector of river's under our contract."""

    def __init__(self, detector) -> None:
        self.detector = detector

    def update(self, value: float) -> bool:
        """Whether river has seen a drift."""
        self.detector.update(value)
        return bool(self.detector.drift_detected)


def contenders() -> dict[str, Callable[[], Updates]]:
    """Ours, river's where it is installed, and the dummy."""
    found: dict[str, Callable[[], Updates]] = {
        "ADWIN": ADWIN,
        "Page-Hinkley": PageHinkley,
        "DDM": DDM,
    }
    try:
        from river import drift
    except ImportError:
        print("river is not installed: pip install river")
    else:
        found |= {
            "river ADWIN": lambda: River(drift.ADWIN()),
            "river Page-Hinkley": lambda: River(drift.PageHinkley(mode="up")),
            "river Page-Hinkley, ours": lambda: River(
                drift.PageHinkley(delta=0.02, threshold=25, mode="up")
            ),
            "river DDM": lambda: River(drift.binary.DDM()),
        }
    return {**found, "always": Always}


def alarms(make: Callable[[], Updates], seed: int, *parts: tuple[float, int]) -> np.ndarray:
    """Rows with an alarm in a stream whose parts are of a rate and a length."""
    rng = np.random.default_rng(seed)
    stream = np.concatenate([rng.random(rows) < rate for rate, rows in parts]).astype(int)
    detector = make()
    return np.flatnonzero([detector.update(value) for value in stream.tolist()])


def measure(make: Callable[[], Updates], seeds: int) -> list[str]:
    """A row of the table."""
    row, start = [], time.process_time()
    for old, new in RISES:
        found = [alarms(make, seed, (old, BEFORE), (new, AFTER)) - BEFORE for seed in range(seeds)]
        delays = [late[late >= 0][0] for late in found if (late >= 0).any()]
        missed = seeds - len(delays)
        row.append(f"{np.mean(delays):.0f}" + (f", {missed} missed" if missed else ""))
    for rate in CONSTANTS:
        found = [alarms(make, 1000 + seed, (rate, CONSTANT)) for seed in range(seeds)]
        row.append(f"{np.mean([len(rows) for rows in found]) / CONSTANT * 1000:.3g}")
    for old, new in FALLS:
        found = [alarms(make, seed, (old, BEFORE), (new, AFTER)) for seed in range(seeds)]
        row.append(f"{np.mean([(rows >= BEFORE).sum() for rows in found]):.3g}")
    rows = seeds * (4 * (BEFORE + AFTER) + 2 * CONSTANT)
    return [*row, f"{(time.process_time() - start) / rows * 1e6:.1f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    table = Table(box=box.SIMPLE)
    for column in (
        "detector",
        *(f"delay {old:.0%} to {new:.0%}" for old, new in RISES),
        *(f"false at {rate:.0%}" for rate in CONSTANTS),
        *(f"fall {old:.0%} to {new:.0%}" for old, new in FALLS),
        "microseconds",
    ):
        table.add_column(column, justify="left" if column == "detector" else "right")
    for name, make in contenders().items():
        table.add_row(name, *measure(make, seeds))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
