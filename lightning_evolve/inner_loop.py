r"""The inner loop: a learner adapts to a task under an update rule.

.. math::
    \theta_{k+1} = \theta_k + \alpha \, g_\phi(\nabla_\theta L_{\mathrm{support}}(\theta_k),
    \theta_k, s_k)

Everything is functional: the learner's own parameters are read, never written, so theta_K is a
function of phi and theta_0 that can be differentiated (``graph="full"``), differentiated without
the Hessian (``"first_order"``, Finn et al. 2017, section 5.2), or just computed (``"none"``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from lightning_evolve.learners.base import Learner
from lightning_evolve.meta_learners.base import MetaLearner, State
from lightning_evolve.noise import dropping
from lightning_evolve.tasks import Batch, Task, Tensors

Graph = Literal["none", "first_order", "full"]


class Adapted(NamedTuple):
    """A learner after an inner step.

    Args:
        theta: its adapting parameters.
        state: what the update rule remembers.
    """

    theta: Tensors
    state: State


class Pull(NamedTuple):
    r"""A proximal term :math:`\frac{\lambda}{2} \|\theta - \theta_0\|^2` of the support loss.

    Args:
        damping: its strength lambda, above 0.
        anchor: theta_0, which theta is pulled back to.
    """

    damping: float
    anchor: Tensors


def logits(learner: Learner, theta: Tensors, batch: Batch, *, second_order: bool = False) -> Tensor:
    """Runs a learner with other parameters than its own.

    Args:
        learner: the base classifier; parameters that ``theta`` does not name stay its own.
        theta: the adapting parameters, by name.
        batch: rows to classify.
        second_order: whether the result will be differentiated twice.

    Returns:
        Logits of shape ``[rows, num_classes]``, in at least 32 bits: losses and rewards differ in
        digits that bfloat16, in which autocast returns them, does not have.
    """
    learner.second_order = second_order
    out: Tensor = functional_call(learner, theta, (), batch.inputs, tie_weights=learner.tied)
    return out if out.dtype == torch.float64 else out.float()


def inner_steps(
    learner: Learner,
    meta_learner: MetaLearner,
    start: Adapted,
    task: Task,
    *,
    alpha: float,
    steps: range,
    graph: Graph = "none",
    pull: Pull | None = None,
    seed: int = 0,
) -> Iterator[Adapted]:
    """Yields theta and the rule's state after each inner step on a task's support set.

    Args:
        learner: the base classifier.
        meta_learner: the update rule.
        start: where to begin.
        task: step ``k`` adapts on ``task.support[k % len(task.support)]``.
        alpha: inner step size.
        steps: numbers of the inner steps to take, such as ``range(K)``.
        graph: whether, and how completely, the result remembers how it depends on phi and
            theta_0.
        pull: a proximal term, whose gradient is added to that of the support loss.
        seed: what a learner with dropout drops is a function of it, ``task.index`` and the step.

    Yields:
        The learner after each step. Without a graph the next step may overwrite the rule's state
        in it, which saves a copy of every accumulator.
    """
    at = start
    for k in steps:
        batch = task.support[k % len(task.support)]
        with dropping(learner, seed, task.index, k):
            at = _inner_step(learner, meta_learner, at, batch, alpha, graph, pull)
        yield at
        if graph == "none":
            at = Adapted(at.theta, at.state._replace(donated=True))


def _inner_step(
    learner: Learner,
    meta_learner: MetaLearner,
    start: Adapted,
    batch: Batch,
    alpha: float,
    graph: Graph,
    pull: Pull | None,
) -> Adapted:
    """One inner step: a function, so that its gradients are not kept while the next one runs."""
    theta, state = start
    with torch.enable_grad():
        at = theta if graph == "full" else detached(theta, requires_grad=True)
        second_order = graph == "full"
        loss = support_loss(logits(learner, at, batch, second_order=second_order), batch.labels)
        # Parameters that the loss does not reach (an unused pooler) get zeros and stay.
        gradients = torch.autograd.grad(
            loss, list(at.values()), create_graph=second_order, materialize_grads=True
        )
    # Autocast is for the learner: a rule's network computes in the precision of theta.
    full = torch.autocast(loss.device.type, enabled=False)
    with torch.set_grad_enabled(graph != "none"), full:
        if pull:
            away = torch._foreach_sub(list(theta.values()), list(pull.anchor.values()))
            gradients = torch._foreach_add(gradients, away, alpha=pull.damping)
        grads = dict(zip(theta, gradients, strict=True))
        direction, state = meta_learner(grads, theta, state)
        # One by one: with a graph torch._foreach_add would keep every direction alive.
        moved = {n: torch.add(p, direction[n], alpha=alpha) for n, p in theta.items()}
    return Adapted(moved, state)


def support_loss(predictions: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy, the mean over rows; of several tasks the sum, a gradient for each.

    Args:
        predictions: logits ``[rows, num_classes]``, or ``[tasks, rows, num_classes]``.
        labels: ``[rows]`` or ``[tasks, rows]``.
    """
    if labels.dim() == 1:
        return functional.cross_entropy(predictions, labels)
    return len(labels) * functional.cross_entropy(predictions.flatten(0, 1), labels.flatten())


def adapt(
    learner: Learner,
    meta_learner: MetaLearner,
    theta: Tensors,
    task: Task,
    *,
    alpha: float,
    steps: int,
    graph: Graph = "none",
) -> Adapted:
    """Adapts a learner to a task: K inner steps from theta.

    Args:
        learner: the base classifier.
        meta_learner: the update rule.
        theta: the adapting parameters to begin from, by name.
        task: what to adapt to.
        alpha: inner step size.
        steps: number of inner steps K.
        graph: as in :func:`inner_steps`.

    Returns:
        The adapted parameters and the rule's last state.

    Example:
        >>> from lightning_evolve.learners import Head
        >>> from lightning_evolve.meta_learners import Adam
        >>> from lightning_evolve.tasks import DataSpec
        >>> learner = Head(DataSpec(num_classes=2, shape=(3,)))
        >>> theta = detached(dict(learner.named_parameters()))
        >>> x, y = {"features": torch.randn(4, 3)}, torch.tensor([0, 1, 0, 1])
        >>> task = Task((Batch(x, y, torch.arange(4)),), Batch(x, y, torch.arange(4)))
        >>> adapt(learner, Adam(theta), theta, task, alpha=0.01, steps=3).state.step
        3
    """
    start = Adapted(theta, meta_learner.init(theta))
    walk = inner_steps(
        learner, meta_learner, start, task, alpha=alpha, steps=range(steps), graph=graph
    )
    # Only the last one is kept: a graph that goes back through all of them hangs on it anyway.
    return deque(walk, maxlen=1).pop() if steps else start


def detached(tensors: Tensors, *, requires_grad: bool = False) -> Tensors:
    """Returns the same values as new leaves of the autograd graph.

    Args:
        tensors: named tensors.
        requires_grad: whether the leaves ask for a gradient.
    """
    return {name: t.detach().requires_grad_(requires_grad) for name, t in tensors.items()}


def detached_state(state: State) -> State:
    """Returns a rule's state cut off from the autograd graph."""
    return State(
        state.step, {kind: detached(values) for kind, values in state.accumulators.items()}
    )


def tensors_of(adapted: Adapted) -> list[Tensor]:
    """Returns theta's tensors and then those of the rule's state, in a fixed order."""
    state = adapted.state.accumulators.values()
    return [*adapted.theta.values(), *(t for values in state for t in values.values())]


def with_tensors(adapted: Adapted, tensors: Iterable[Tensor]) -> Adapted:
    """Returns a learner of the same names and step with other tensors.

    Args:
        adapted: gives the names and the step.
        tensors: in the order of :func:`tensors_of`.
    """
    rest = iter(tensors)
    theta = {name: next(rest) for name in adapted.theta}
    accumulators = {
        kind: {name: next(rest) for name in values}
        for kind, values in adapted.state.accumulators.items()
    }
    return Adapted(theta, State(adapted.state.step, accumulators))
