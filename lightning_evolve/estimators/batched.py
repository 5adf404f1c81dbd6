r"""All tasks of an outer step at once: an episode whose tensors have a task dimension in front.

Small learners spend their time on calling operations, and one call for all tasks costs little more
than one for each. Only the learner's forward pass is under ``torch.func.vmap``, each task with a
theta of its own, and autograd differentiates what it computes as often as needed. With
``torch.func.grad`` over ``vmap`` over ``torch.func.grad``, which one would write first, second
derivatives through a layer or batch norm are wrong without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.base import Episode, Estimate
from lightning_evolve.inner_loop import tensors_of, with_tensors
from lightning_evolve.learners.base import Learner
from lightning_evolve.meta_learners.base import MetaLearner
from lightning_evolve.rewards import Reward
from lightning_evolve.tasks import Batch, Task, Tensors

# Kinds of modules that a test has compared with the loop over tasks. Dropout is none of them, which
# would need a seed for each task, nor are recurrent kernels, which vmap does not know.
WHITE_LIST = (
    nn.Conv2d,
    nn.Embedding,
    nn.Flatten,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.Linear,
    nn.MaxPool2d,
    nn.ModuleList,
    nn.ReLU,
    nn.Sequential,
)


def all_at_once(
    estimate: Callable[[Episode], Estimate], episodes: Sequence[Episode]
) -> list[Estimate]:
    """Plays episodes of the same shapes as a single one.

    Args:
        estimate: an estimator that keeps to what batches of tasks can do: :func:`unrolled`.
        episodes: one a task, which differ in nothing else.

    Returns:
        One estimate a task. Its reward and gradients are the mean over all tasks, which is what an
        outer step takes; logits and theta are the task's own.

    Raises:
        UsageError: if the tasks are not of the same shapes.
    """
    first, count = episodes[0], len(episodes)
    if any(e.learner is not first.learner for e in episodes):
        raise UsageError(
            "batched: true with tasks for several learners; give batched: false, or one family"
        )
    state = tensors_of(first.start)
    start = with_tensors(first.start, [t.expand(count, *t.shape) for t in state])
    merged = first._replace(
        learner=_EachOnItsOwn(first.learner, set(first.start.theta)),
        start=start,
        task=_stacked([e.task for e in episodes]),
        reward=_Mean(first.reward),
    )
    found = estimate(merged)
    held = merged.learned_held()
    theta = {n: g if n in held else g.sum(0) for n, g in found.theta.items()}
    ends = zip(*(t.unbind() for t in tensors_of(found.adapted)), strict=True)
    return [
        found._replace(theta=theta, logits=logits, adapted=with_tensors(found.adapted, end))
        for logits, end in zip(found.logits, ends, strict=True)
    ]


def check_batched_learner(learner: Learner) -> None:
    """Refuses a learner with a part that is not on the white list.

    Args:
        learner: the base classifier.

    Raises:
        UsageError: naming the part.
    """
    if learner._compiled_call_impl is not None:
        raise UsageError("batched: true with a compiled learner; give --model.compile false")
    for module in learner.modules():
        norm = isinstance(module, nn.BatchNorm2d) and not module.track_running_stats
        if module is not learner and not norm and not isinstance(module, WHITE_LIST):
            raise UsageError(
                f"batched: true with {type(learner).__name__}, whose {type(module).__name__} is "
                "not known to be right for many tasks at once; give batched: false"
            )


def check_batched_rule(rule: MetaLearner) -> None:
    """Refuses a rule that treats a tensor as a whole.

    Args:
        rule: the update rule.

    Raises:
        UsageError: naming rules that do not.
    """
    if not rule.elementwise:
        raise UsageError(
            f"batched: true with {type(rule).__name__}, which looks at whole tensors, and those of "
            "all tasks are one; use SGD, Momentum, Adam, AdamW or MetaSGD, or batched: false"
        )


class _EachOnItsOwn(Learner):
    """A learner over tasks: parameters ``[tasks, ...]``, inputs ``[tasks, rows, ...]``.

    Args:
        learner: over one task, whose parameters this one has by the same names.
        adapting: names of those that have a task dimension.
    """

    def __init__(self, learner: Learner, adapting: set[str]) -> None:
        super().__init__(learner.spec)
        self.dimensions = {n: 0 if n in adapting else None for n, _ in learner.named_parameters()}
        # Shared, so that parameters that are put in the place of this one's are found there.
        self._parameters, self._modules = learner._parameters, learner._modules
        self._buffers = learner._buffers
        object.__setattr__(self, "one", learner)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Returns logits of shape ``[tasks, rows, num_classes]``."""
        self.one.second_order = self.second_order

        def task(theta: Tensors, rows: Tensors) -> Any:
            return functional_call(self.one, theta, (), rows)

        theta: Tensors = dict(self.named_parameters())
        try:
            out: Tensor = vmap(task, in_dims=(self.dimensions, 0))(theta, inputs)
        except RuntimeError as error:
            raise UsageError(
                f"batched: true with {type(self.one).__name__}, whose forward pass cannot be "
                f"batched over tasks; give batched: false ({str(error).splitlines()[0]})"
            ) from error
        return out

    one: Learner


class _Mean(Reward):
    """The mean reward of tasks.

    Args:
        reward: of one task.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Reward`; both with a task dimension in front."""
        pairs = zip(logits, labels, strict=True)
        return torch.stack([self.reward(*pair) for pair in pairs]).mean()


def _stacked(tasks: Sequence[Task]) -> Task:
    """One task whose tensors have a task dimension in front."""
    counts = {len(task.support) for task in tasks}
    if len(counts) > 1:
        raise UsageError(
            f"batched: true with tasks of {min(counts)} to {max(counts)} support batches; give "
            "batched: false"
        )

    def stack(tensors: Sequence[Tensor]) -> Tensor:
        shapes = sorted({tuple(t.shape) for t in tensors})
        if len(shapes) > 1:
            raise UsageError(
                f"batched: true with tasks of different shapes, {shapes[0]} and {shapes[-1]}; give "
                "batched: false, or a stream whose tasks have as many rows of one size each"
            )
        return torch.stack([*tensors])

    def batch(batches: Sequence[Batch]) -> Batch:
        inputs = {n: stack([b.inputs[n] for b in batches]) for n in batches[0].inputs}
        return Batch(inputs, stack([b.labels for b in batches]), stack([b.rows for b in batches]))

    supports = zip(*(task.support for task in tasks), strict=True)
    return tasks[0]._replace(
        support=tuple(batch(same) for same in supports), query=batch([t.query for t in tasks])
    )
