"""The implicit meta-gradient: differentiating a stationary point, however it was reached."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.base import Episode, Estimate, Estimator, refuse_phi
from lightning_evolve.inner_loop import detached, logits
from lightning_evolve.meta_learners.base import MetaLearner
from lightning_evolve.noise import dropping
from lightning_evolve.rewards import Reward
from lightning_evolve.tasks import Tensors

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix as its product with a vector."""

_POWER_ITERATIONS = 10


def implicit(
    episode: Episode,
    *,
    solver: Literal["cg", "neumann"] = "cg",
    iterations: int = 5,
    damping: float = 1.0,
) -> Estimate:
    r"""Differentiates the reward at the minimum of a damped support loss by the initial theta.

    .. math::
        \theta^* = \arg\min_\theta L_{\mathrm{support}}(\theta)
        + \frac{\lambda}{2} \|\theta - \theta_0\|^2
        \quad\Rightarrow\quad
        \frac{dR(\theta^*)}{d\theta_0}
        = \lambda \left(\nabla^2 L_{\mathrm{support}}(\theta^*) + \lambda I\right)^{-1}
        \nabla R(\theta^*)

    (iMAML, Rajeswaran et al. 2019.) The way to the minimum is not differentiated, so that memory
    does not grow with K; it is exact only where the inner loop has got there, and the rule rests
    where that gradient is zero (weight decay would move the point). The inverse is applied by
    conjugate gradients or by the Neumann series (Lorraine et al. 2020), in products with the
    Hessian of the mean loss over the support batches.

    Args:
        episode: what to play; all of its theta is learned. The reward counts after step K alone.
        solver: ``"cg"``, the faster one, or ``"neumann"``.
        iterations: products with the Hessian that the solver may take.
        damping: strength lambda of the pull back to the initial theta, which the inner loop feels
            too.

    Returns:
        The gradient by the initial theta, and none by phi.
    """
    learner, task, initial = episode.learner, episode.task, episode.learned_theta()
    with torch.no_grad():
        walk = episode._replace(damping=damping).walk(episode.start, range(episode.steps))
        _, adapted = deque(walk, maxlen=1).pop()
    with torch.enable_grad():
        theta = detached(adapted.theta, requires_grad=True)
        out, reward = episode.score(theta, episode.steps)
        uphill = _flat(torch.autograd.grad(reward, list(theta.values()), materialize_grads=True))
        losses = []
        for k, b in enumerate(task.support):
            with dropping(learner, episode.seed, task.index, k):  # as in the inner step k
                out_k = logits(learner, theta, b, second_order=True)
            losses.append(functional.cross_entropy(out_k, b.labels))
        gradient = torch.autograd.grad(
            torch.stack(losses).mean(),
            list(theta.values()),
            create_graph=True,
            materialize_grads=True,
        )

    def damped_hessian(vector: Tensor) -> Tensor:
        parts = _split(vector, theta)
        product = torch.autograd.grad(
            [g for g in gradient if g.requires_grad],
            list(theta.values()),
            [p for p, g in zip(parts, gradient, strict=True) if g.requires_grad],
            retain_graph=True,
            materialize_grads=True,
        )
        return _flat(product).add_(vector, alpha=damping)

    solve = conjugate_gradients if solver == "cg" else neumann_series
    solution = solve(damped_hessian, uphill, iterations)
    if not solution.any():  # the loss does not bend upwards: as if it were flat
        solution = uphill / damping
    solution = solution.mul_(damping)
    return Estimate(
        phi={},
        theta={n: t for n, t in zip(theta, _split(solution, theta), strict=True) if n in initial},
        reward=reward.detach(),
        logits=out.detach(),
        adapted=adapted,
    )


def conjugate_gradients(matrix: Product, vector: Tensor, iterations: int) -> Tensor:
    """Solves ``matrix x = vector`` (Hestenes and Stiefel 1952).

    Where the curvature along a direction is not positive, as a loss that is not convex can have
    it, the solution so far is returned (Steihaug 1983); at the first one that is zero.

    Args:
        matrix: the product with a symmetric positive definite matrix.
        vector: the right-hand side.
        iterations: products that may be taken.

    Example:
        >>> scales = torch.tensor([1.0, 4.0])
        >>> conjugate_gradients(lambda x: scales * x, torch.tensor([1.0, 2.0]), iterations=2)
        tensor([1.0000, 0.5000])
    """
    solution, residual = torch.zeros_like(vector), vector.clone()
    direction, squared = residual.clone(), residual.dot(residual)
    tiny = squared * torch.finfo(vector.dtype).eps ** 2
    for _ in range(iterations):
        if squared <= tiny:
            break
        product = matrix(direction)
        curvature = direction.dot(product)
        if curvature <= 0:
            return solution
        length = squared / curvature
        solution += length * direction
        residual -= length * product
        before, squared = squared, residual.dot(residual)
        direction = residual + squared / before * direction
    return solution


def neumann_series(matrix: Product, vector: Tensor, iterations: int) -> Tensor:
    r"""Solves ``matrix x = vector`` by :math:`\eta \sum_i (I - \eta A)^i v` (Lorraine et al. 2020).

    The step :math:`\eta` is one over the largest eigenvalue, which ten power iterations find
    (at less than twice too low it would still converge).

    Args:
        matrix: the product with a symmetric positive definite matrix.
        vector: the right-hand side.
        iterations: terms after the first, a product each.

    Example:
        >>> scales = torch.tensor([1.0, 4.0])
        >>> neumann_series(lambda x: scales * x, torch.tensor([1.0, 2.0]), iterations=60)
        tensor([1.0000, 0.5000])
    """
    norm = torch.linalg.vector_norm(vector)
    if norm == 0:
        return torch.zeros_like(vector)
    probe = vector / norm
    for _ in range(_POWER_ITERATIONS):
        probe = matrix(probe)
        largest: Tensor = torch.linalg.vector_norm(probe)
        probe = probe / largest
    term = vector / largest
    total = term.clone()
    for _ in range(iterations):
        term = term - matrix(term) / largest
        total += term
    return total


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _split(vector: Tensor, like: Tensors) -> list[Tensor]:
    parts = torch.split(vector, [t.numel() for t in like.values()])
    return [part.view_as(t) for part, t in zip(parts, like.values(), strict=True)]


@dataclass(frozen=True)
class Implicit(Estimator):
    """The gradient by a learned initial theta through the minimum that the inner loop reaches.

    Args:
        solver: ``"cg"`` (conjugate gradients) or ``"neumann"``.
        iterations: products with the Hessian that the solver may take.
        damping: strength of the pull back to the initial theta, which the inner loop feels too,
            in training and in evaluation; a larger one needs fewer iterations and lets theta adapt
            less.

    Raises:
        UsageError: for another solver, no iterations, or a damping that is not positive.
    """

    solver: Literal["cg", "neumann"] = "cg"
    iterations: int = 5
    damping: float = 1.0
    second_order = True

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.solver not in ("cg", "neumann"):
            raise UsageError(f"solver is {self.solver!r}; give cg or neumann")
        if self.iterations < 1:
            raise UsageError(f"iterations is {self.iterations}; give at least 1")
        if not (math.isfinite(self.damping) and self.damping > 0):
            raise UsageError(
                f"damping is {self.damping}; give a positive number such as 1, which makes the "
                "support loss bend upwards"
            )

    def __call__(self, episode: Episode) -> Estimate:
        """See :func:`implicit`."""
        return implicit(
            episode, solver=self.solver, iterations=self.iterations, damping=self.damping
        )

    def check(
        self, *, reward: Reward, steps: int, measured: tuple[int, ...], learn_init: bool
    ) -> None:
        """See :meth:`Estimator.check`."""
        if not learn_init:
            raise UsageError(
                "Implicit learns the initial theta alone, and learn_init is false; give "
                "learn_init: true, or the estimator Unrolled to learn phi"
            )
        if not reward.differentiable:
            raise UsageError(
                f"Implicit differentiates the reward, and {type(reward).__name__} has no gradient; "
                "use the reward NegativeLoss, or the estimator Reptile, which needs none"
            )
        if len(measured) > 1:
            raise UsageError(
                f"measurements is {len(measured)} and Implicit looks at the last inner step alone; "
                "give measurements: 1"
            )

    def check_rule(self, meta_learner: MetaLearner) -> None:
        """See :meth:`Estimator.check_rule`."""
        refuse_phi(self, meta_learner)
