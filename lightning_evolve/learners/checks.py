"""What the learners refuse, in one sentence."""

from __future__ import annotations

from torch import nn

from lightning_evolve.errors import UsageError
from lightning_evolve.tasks import DataSpec

_ENCODERS = {
    "text": "Words() or CheckpointTokenizer()",
    "n-grams": "NGrams()",
    "images": "Pixels()",
    "feature vectors": "FrozenFeatures()",
}


def kind_of(spec: DataSpec) -> str:
    """What a person calls the data.

    Args:
        spec: what the data looks like.

    Returns:
        ``"text"``, ``"n-grams"``, ``"images"``, ``"feature vectors"``, or the shape where it is
        none of them.

    >>> kind_of(DataSpec(num_classes=2, vocab_size=100))
    'text'
    >>> kind_of(DataSpec(num_classes=2, shape=(1, 28, 28)))
    'images'
    """
    if spec.vocab_size:
        return "n-grams" if spec.shape else "text"
    return {1: "feature vectors", 3: "images"}.get(len(spec.shape), f"of shape {spec.shape}")


def check_kind(learner: str, reads: str, spec: DataSpec) -> None:
    """Refuse a learner on data that it cannot read.

    Args:
        learner: name of the learner.
        reads: the kind of data that it reads, as ``kind_of`` calls it.
        spec: what the data looks like.

    Raises:
        UsageError: if the data is of another kind; names the encoder that the learner wants.
    """
    kind = kind_of(spec)
    if kind != reads:
        raise UsageError(
            f"{learner} reads {reads}, but the stream's data is {kind}: "
            f"take a stream of {reads} with the encoder {_ENCODERS[reads]}, or another learner"
        )


def check_statistics(learner: nn.Module) -> None:
    """Refuse layers that remember what they have seen, which tasks and processes would not share.

    Args:
        learner: the learner.

    Raises:
        UsageError: naming the layer.
    """
    for name, part in learner.named_modules():
        if getattr(part, "track_running_stats", False):
            kind = type(part).__name__
            raise UsageError(
                f"{name} of {type(learner).__name__} is a {kind} with running statistics, which "
                f"each task would leave to the next; give {kind}(..., track_running_stats=False), "
                "whose statistics are the batch's, or GroupNorm"
            )


def check_sizes(learner: str, **sizes: int) -> None:
    """Refuse layer sizes below 1.

    Args:
        learner: name of the learner.
        sizes: layer sizes by argument name.

    Raises:
        UsageError: if a size is below 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} of {learner} is {size}: give 1 or more")
