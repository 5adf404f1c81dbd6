"""What the loop is measured against: simpler ways to live with a stream, on the same records."""

from __future__ import annotations

import time
from typing import Literal, NamedTuple, get_args

import numpy as np

from lightning_evolve.data.cache import Cache
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.model import Model
from lightning_evolve.evolution.pool import Pool
from lightning_evolve.evolution.pretrained import Pretrained
from lightning_evolve.evolution.training import DivergedError, Training

Baseline = Literal["never", "always", "scratch"]
"""``never`` keeps the founding champion; ``always`` trains on by the configured update, with
replay, and promotes whatever comes out; ``scratch`` trains the pretrained model anew on all records
so far, with as many steps a record as the founding champion had."""


class Advanced(NamedTuple):
    """A baseline after a generation.

    Args:
        model: what it goes on with.
        seconds: CPU time that the training took.
    """

    model: Model
    seconds: float


def check(names: list[Baseline]) -> None:
    """Refuses names that are none.

    Args:
        names: of baselines.

    Raises:
        UsageError: for another name.
    """
    for name in names:
        if name not in get_args(Baseline):
            known = ", ".join(get_args(Baseline))
            raise UsageError(f"beside names {name!r}: choose from {known}")


def advance(
    name: Baseline,
    model: Model,
    pool: Pool,
    *,
    pretrained: Pretrained,
    training: Training,
    cache: Cache,
    seed: tuple[int, ...],
) -> Advanced:
    """Takes a baseline through a generation.

    Args:
        name: which one.
        model: what it had before, and keeps where its training diverges.
        pool: the records so far, those of this generation the last.
        pretrained: what it begins from.
        training: the inner loop.
        cache: where encoded rows are kept.
        seed: what decides which rows are drawn.
    """
    if name == "never":
        return Advanced(model, 0.0)
    began = time.process_time()
    try:
        trained = (
            _continued(model, pool, training, seed)
            if name == "always"
            else _anew(pool, pretrained, training, cache, seed)
        )
    except DivergedError:
        trained = model
    return Advanced(trained, time.process_time() - began)


# Both learn from all rows with a label, also what the loop holds back: simpler ways do not ask.


def _continued(model: Model, pool: Pool, training: Training, seed: tuple[int, ...]) -> Model:
    learned = pool.labelled & (pool.part == "train")
    now = pool.generation == pool.generation.max()
    wider = model.knowing(sorted(set(pool.label[pool.labelled])), seed[0])
    new = pool.examples(learned & now, wider.classes)
    old = pool.examples(learned & ~now, wider.classes)
    grown = training.grow(wider, new, old, seed=seed)[0] if len(new) else wider
    tune = pool.labelled & now & (pool.part == "tune")
    return grown.calibrated(pool.select(tune), pool.labels(tune, grown.classes))


def _anew(
    pool: Pool,
    pretrained: Pretrained,
    training: Training,
    cache: Cache,
    seed: tuple[int, ...],
) -> Model:
    learned = pool.labelled & (pool.part == "train")
    classes = sorted(set(pool.label[pool.labelled]))
    order = np.flatnonzero(learned)
    fresh = pretrained.model([pool.text[n] for n in order], classes, seed[0])
    first = int((learned & (pool.generation == pool.generation.min())).sum())
    steps = round(training.first_steps * len(order) / max(1, first))
    rows = pool.encoded_by(fresh, cache)
    new = rows.examples(learned, fresh.classes)
    grown = training.grow(fresh, new, steps=steps, seed=seed)[0]
    tune = pool.labelled & (pool.part == "tune")
    return grown.calibrated(rows.select(tune), rows.labels(tune, grown.classes))
