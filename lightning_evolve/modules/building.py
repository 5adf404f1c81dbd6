"""Building a learner that depends on nothing but the data and a seed, and what of it adapts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import lightning as L
import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.learners.base import Learner, LearnerFactory
from lightning_evolve.tasks import DataSpec, Tensors


def build(learner: LearnerFactory, spec: DataSpec, seed: int) -> Learner:
    """Builds a learner whose initial weights are a function of the seed, in torch's default dtype.

    Args:
        learner: a learner's class or a ``functools.partial`` of it.
        spec: what the data looks like.
        seed: of the initial weights.

    Raises:
        UsageError: if it is no learner.
    """
    with torch.random.fork_rng(devices=[]), drawn_in_single():
        torch.manual_seed(seed)
        built: object = learner(spec)
    if not isinstance(built, Learner):
        raise UsageError(
            f"{type(built).__name__} is no learner; derive it from lightning_evolve.learners."
            "Learner, whose forward takes the inputs of a batch by name and returns logits"
        )
    # Before anybody else decides on gradients.
    built.frozen = frozenset(n for n, p in built.named_parameters() if not p.requires_grad)
    return built.to(torch.get_default_dtype())


@contextmanager
def drawn_in_single() -> Iterator[None]:
    """Has random weights drawn in 32 bits, so that a seed gives the same ones in every precision.

    Torch draws other numbers in 64 bits, not the same ones with more digits. What is built inside
    is to be converted to torch's default dtype afterwards.

    Example:
        >>> with drawn_in_single():
        ...     torch.zeros(1).dtype
        torch.float32
    """
    precision = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(precision)


def attached_spec(module: L.LightningModule) -> DataSpec | None:
    """Returns what the data looks like, or None where the module is loaded without a Trainer.

    Args:
        module: a module whose Trainer has a data module.

    Raises:
        UsageError: if the Trainer has no data module with a ``spec``, or one for another module.
    """
    try:
        trainer = module.trainer
    except RuntimeError:  # Lightning's way to say that there is none
        return None
    spec = getattr(getattr(trainer, "datamodule", None), "spec", None)
    if spec is None:
        raise UsageError(
            f"{type(module).__name__} learns the shape of the data from a stream's `spec`; "
            "pass datamodule=..., such as an EpisodeStream"
        )
    several = getattr(module, "several_families", False)
    if bool(spec.families) != several:
        fitting = "EvolvingRule" if spec.families else "EvolvingClassifier"
        raise UsageError(
            f"{type(module).__name__} learns on {'a MixtureStream' if several else 'one family'} "
            f"and the data are {'several' if spec.families else 'one family'}; use the model "
            f"{fitting}, or other data"
        )
    return DataSpec(**vars(spec))


def adapting(learner: Learner, patterns: Sequence[str], option: str = "adapt") -> Tensors:
    """Returns the parameters that the inner loop adapts, in the learner's order.

    Args:
        learner: the base classifier.
        patterns: ``"all"`` but what the learner froze itself, ``"head"``, or shell patterns of
            parameter names such as ``"encoder.encoder.layer.5.*"``; those that begin with ``!``
            leave out what they match.
        option: where the user gave them.

    Raises:
        UsageError: if a pattern names no parameter.

    Example:
        >>> from lightning_evolve.learners import Head
        >>> list(adapting(Head(DataSpec(num_classes=2, shape=(3,))), ["head"]))
        ['head.weight', 'head.bias']
        >>> list(adapting(Head(DataSpec(num_classes=2, shape=(3,))), ["all", "!*.bias"]))
        ['hidden.weight', 'head.weight']
    """
    # A tied parameter answers to each of its names, and goes by the first.
    names: dict[int, str] = {}
    every = {
        name: names.setdefault(id(p), name)
        for name, p in learner.named_parameters(remove_duplicate=False)
    }
    parameters = dict(learner.named_parameters())
    found: dict[str, bool] = {}
    for pattern in patterns:
        name = pattern.removeprefix("!")
        glob = {"all": "*", "head": "head.*"}.get(name, name)
        own = learner.frozen if name == "all" else ()
        matched = [first for n, first in every.items() if fnmatchcase(n, glob) and n not in own]
        if not matched:
            shown = ", ".join(list(parameters)[:8])
            raise UsageError(f"{option}: {pattern!r} names no parameter; there are {shown}, ...")
        found |= dict.fromkeys(matched, not pattern.startswith("!"))
    chosen: Tensors = {name: p for name, p in parameters.items() if found.get(name)}
    if not chosen:
        raise UsageError(
            f"{option}: {[*patterns]} leaves no parameter; begin with what there is, as in "
            "[all, '!head']"
        )
    return chosen
