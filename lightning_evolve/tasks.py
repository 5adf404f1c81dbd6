"""What is learned from: batches, tasks, and the shape of the data behind them.

A *task* is a support set to adapt on and a query set to score on (Vinyals et al. 2016). All three
cases of the framework are tasks: a few-shot episode has one support batch, a mini-batch of
ordinary training data is a task of one inner step, and an experience of a stream has one support
batch for each of its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

Tensors = dict[str, Tensor]
"""Named tensors: parameters, gradients or directions by name, or a batch's inputs by keyword."""


class Batch(NamedTuple):
    """Rows of encoded data with their labels.

    Args:
        inputs: keyword inputs of the learner, each of shape ``[rows, ...]``: ``input_ids`` and
            ``attention_mask`` for text, ``input_ids`` and ``weights`` for n-grams, ``images`` for
            images, ``features`` for cached features.
        labels: class of each row, int64 of shape ``[rows]``, in ``0..num_classes-1``.
        rows: number of each row in the stream's table, which is the source cleaned and split, int64
            of shape ``[rows]``: what the no-learning floor looks its raw features up with.
    """

    inputs: Tensors
    labels: Tensor
    rows: Tensor


class Task(NamedTuple):
    """A support set to adapt on and a query set to score on.

    Args:
        support: the batches of the inner steps; step ``k`` takes ``support[k % len(support)]``.
        query: the rows that the reward is measured on, disjoint from the support.
        index: position in the stream over all ranks; whatever is random about a task is a
            function of the seed and this number.
        name: what a person calls the task, such as its classes.
        share: this process's part of the work on the task, from 0, and into how many parts it is
            divided; only estimators that play a population divide it.
        family: which family of tasks it belongs to, where a stream mixes several.
    """

    support: Sequence[Batch]
    query: Batch
    index: int = 0  # type: ignore[assignment]  # hides tuple.index, which nobody wants here
    name: str = ""
    share: tuple[int, int] = (0, 1)
    family: str = ""


@dataclass(frozen=True)
class DataSpec:
    """What a learner must know of the data before it can be built.

    Args:
        num_classes: width of the logits; the number of ways of a few-shot task.
        vocab_size: number of token ids of text inputs, 0 for other inputs.
        shape: shape of one row of dense inputs, ``(features,)`` or ``(channels, height, width)``;
            ``(n-grams,)``, the most of a row, beside a ``vocab_size``; empty for other text.
        class_names: names of the classes where they are the same in all tasks, else empty.
        families: where a stream mixes several families of tasks, what each looks like, by name;
            nothing else is known of the data then but the largest number of classes.
        encoding: digest of the training rows that an encoder has learned from, ``""`` where it does
            not learn: under the words of other rows, a trained theta means nothing.
    """

    num_classes: int
    vocab_size: int = 0
    shape: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    families: dict[str, DataSpec] = field(default_factory=dict)
    encoding: str = ""
