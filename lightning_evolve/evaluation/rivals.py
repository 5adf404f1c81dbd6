"""The hand-designed rules that the learned update has to beat, tuned as hard as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import NamedTuple

from lightning_evolve.errors import UsageError
from lightning_evolve.evaluation.tuning import tune
from lightning_evolve.learners.base import Learner
from lightning_evolve.meta_learners import SGD, Adam, AdamW, MetaLearnerFactory, Muon
from lightning_evolve.tasks import Tensors

RIVALS = ("sgd", "adam", "adam_groups", "adamw", "muon")
"""Names of the rivals as they stand in ``results.json``."""


class Rival(NamedTuple):
    """A tuned rule.

    Args:
        rule: builds it for a theta.
        alpha: its tuned rate.
        setting: what was chosen, for the record.
    """

    rule: MetaLearnerFactory
    alpha: float
    setting: dict[str, float]


def first_group(learner: Learner, theta: Tensors) -> str:
    """Returns the pattern of the first parameter group: the embedding or first layer.

    Where that does not adapt, or everything that adapts is in it, the first tensor is the group.

    Args:
        learner: the base classifier.
        theta: its adapting parameters.
    """
    prefix = f"{learner.first_layer}."
    inside = [name for name in theta if name.startswith(prefix)]
    return f"{prefix}*" if 0 < len(inside) < len(theta) else next(iter(theta))


def name_of(rule: MetaLearnerFactory) -> str:
    """Returns what a person calls a rule: the name of its class.

    Example:
        >>> name_of(partial(Adam, eps=1e-6))
        'Adam'
    """
    return str(getattr(getattr(rule, "func", rule), "__name__", "rule"))


def tuned_rivals(
    loss: Callable[[MetaLearnerFactory, float], float],
    learner: Learner,
    theta: Tensors,
    centre: float,
    names: Iterable[str] = RIVALS,
    points: int = 7,
) -> dict[str, Rival]:
    """Tunes each rival's rate, and the two rates of Adam with groups.

    The groups are tuned in turns, as a careful user would: one rate for all first, then the first
    layer's with the rest held, then the rest's with the first layer's held.

    Args:
        loss: what a rule at a rate leads to on the tuning tasks.
        learner: the base classifier.
        theta: its adapting parameters.
        centre: middle of the grids, such as our own rate; plain SGD, whose gradient is not
            normalised, is tuned around a hundred times that.
        names: which of :data:`RIVALS`.
        points: size of each grid.

    Raises:
        UsageError: for a name that is no rival.
    """
    names = list(names)
    for name in names:
        if name not in RIVALS:
            raise UsageError(f"rivals: {name!r} is none of {', '.join(RIVALS)}")
    rivals: dict[str, Rival] = {}
    rules: dict[str, MetaLearnerFactory] = {
        "sgd": SGD,
        "adam": Adam,
        "adamw": AdamW,
        "muon": Muon,
    }
    for name, rule in rules.items():
        if name in names or (name == "adam" and "adam_groups" in names):
            middle = 100 * centre if name == "sgd" else centre
            rate = tune(partial(loss, rule), middle, points)
            rivals[name] = Rival(rule, rate, {"rate": rate})
    if "adam_groups" in names:
        pattern, rate = first_group(learner, theta), rivals["adam"].alpha

        @cache  # the same rule for the same ratio, by which its run is known again
        def grouped(first: float, rest: float) -> MetaLearnerFactory:
            return partial(Adam, ratios={pattern: first / rest})

        first = tune(lambda first: loss(grouped(first, rate), rate), rate, points)
        rest = tune(lambda rest: loss(grouped(first, rest), rest), rate, points)
        rivals["adam_groups"] = Rival(
            grouped(first, rest), rest, {"rate": rest, "first_rate": first}
        )
    return {name: rivals[name] for name in RIVALS if name in names}
