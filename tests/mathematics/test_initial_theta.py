"""Estimators of a learned initial theta alone: implicit gradients and Reptile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import (
    Episode,
    Implicit,
    Reptile,
    implicit,
    reptile,
    unrolled,
)
from lightning_evolve.estimators.implicit import conjugate_gradients, neumann_series
from lightning_evolve.inner_loop import Adapted, adapt, detached
from lightning_evolve.learners import Head
from lightning_evolve.learners.base import Learner
from lightning_evolve.meta_learners import SGD, Gains
from lightning_evolve.rewards import Accuracy, NegativeLoss
from lightning_evolve.tasks import Batch, DataSpec, Task
from tests.mathematics.test_meta_gradients import make_episode

DAMPING = 0.5


def convex_episode(steps, alpha=0.5, rule=SGD):
    """Logistic regression: with the pull, a strongly convex support loss."""
    torch.manual_seed(0)
    learner = Head(DataSpec(num_classes=3, shape=(4,)), hidden_size=0).double()
    learner.requires_grad_(False)

    def batch(rows):
        x = torch.randn(rows, 4, dtype=torch.float64)
        return Batch({"features": x}, torch.arange(rows) % 3, torch.arange(rows))

    theta = {n: torch.randn_like(p).requires_grad_() for n, p in learner.named_parameters()}
    meta_learner = rule(theta)
    return Episode(
        learner=learner,
        meta_learner=meta_learner,
        start=Adapted(theta, meta_learner.init(detached(theta))),
        task=Task((batch(9),), batch(6)),
        alpha=alpha,
        steps=steps,
        reward=NegativeLoss(),
        measured=(steps,),
    )


def off(one, other):
    """Relative distance of two gradients."""
    one, other = (torch.cat([g.reshape(-1) for g in each.values()]) for each in (one, other))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("solver", "iterations"), [("cg", 15), ("neumann", 60)])
def test_implicit_is_the_exact_gradient_at_the_minimum(solver, iterations):
    episode = convex_episode(steps=100)
    exact = unrolled(episode._replace(damping=DAMPING))
    estimate = implicit(episode, solver=solver, iterations=iterations, damping=DAMPING)
    assert off(estimate.theta, exact.theta) < 1e-3
    torch.testing.assert_close(estimate.reward, exact.reward)
    for name, t in exact.adapted.theta.items():
        torch.testing.assert_close(estimate.adapted.theta[name], t)


@pytest.mark.parametrize(("solver", "iterations"), [("cg", 15), ("neumann", 60)])
def test_implicit_is_not_where_the_inner_loop_has_not_converged(solver, iterations):
    episode = convex_episode(steps=2, alpha=0.1)
    exact = unrolled(episode._replace(damping=DAMPING))
    estimate = implicit(episode, solver=solver, iterations=iterations, damping=DAMPING)
    assert off(estimate.theta, exact.theta) > 0.05


def test_without_the_pull_the_exact_gradient_is_another():
    """The proximal term is felt by the inner loop, and not only by the solver."""
    episode = convex_episode(steps=100)
    estimate = implicit(episode, iterations=15, damping=DAMPING)
    assert off(estimate.theta, unrolled(episode).theta) > 0.05


def test_the_solvers_solve():
    torch.manual_seed(0)
    root = torch.randn(8, 8, dtype=torch.float64)
    matrix, vector = root @ root.T + torch.eye(8, dtype=torch.float64), torch.randn(8).double()
    expected = torch.linalg.solve(matrix, vector)
    torch.testing.assert_close(conjugate_gradients(matrix.mv, vector, 8), expected)
    torch.testing.assert_close(neumann_series(matrix.mv, vector, 2000), expected)
    for solver in (conjugate_gradients, neumann_series):
        assert torch.equal(solver(matrix.mv, torch.zeros_like(vector), 3), torch.zeros_like(vector))


def test_a_curvature_that_is_not_positive_ends_the_solution_before_it():
    scales = torch.tensor([1.0, -4.0])
    vector = torch.tensor([0.1, 1.0])
    solution = conjugate_gradients(lambda x: scales * x, vector, 2)
    assert torch.equal(solution, torch.zeros_like(vector))


def test_implicit_takes_a_loss_that_bends_downwards_as_flat():
    """The gradient by theta_0 is then that of the reward, whatever the damping."""
    flat, downwards = (implicit(bent_episode(bend), damping=0.01).theta["w"] for bend in (0.0, 1.0))
    torch.testing.assert_close(downwards, flat)
    assert flat.norm() > 0.1


class Bent(Learner):
    """Logits (x w + bend |w|^2, 0), where x and bend are features."""

    def __init__(self):
        super().__init__(DataSpec(num_classes=2, shape=(3,)))
        self.w = nn.Parameter(torch.tensor([0.1, -0.1], dtype=torch.float64))

    def forward(self, features):
        z = features[:, :2] @ self.w + features[:, 2] * self.w.square().sum()
        return torch.stack([z, torch.zeros_like(z)], dim=-1)


def bent_episode(bend):
    """The support loss bends downwards by the bend; the query loss is that of a linear model."""
    support, query = torch.zeros(4, 3).double(), torch.ones(4, 3).double()
    support[:, 2], query[:, 2] = bend, 0.0
    labels = torch.zeros(4, dtype=torch.int64)
    learner = Bent()
    theta = dict(learner.named_parameters())
    rule = SGD(theta)
    support, query = (Batch({"features": x}, labels, labels) for x in (support, query))
    return Episode(
        learner=learner,
        meta_learner=rule,
        start=Adapted(theta, rule.init(theta)),
        task=Task((support,), query),
        alpha=1e-9,
        steps=1,
        reward=NegativeLoss(),
        measured=(1,),
    )


def test_implicit_runs_on_every_kind_of_learner():
    for name in ("lstm", "cnn", "bert"):
        episode = make_episode(name, SGD, steps=3, measurements=(3,))
        initial = detached(episode.start.theta, requires_grad=True)
        episode = episode._replace(start=episode.start._replace(theta=initial))
        estimate = implicit(episode, damping=5.0)
        assert estimate.theta.keys() == initial.keys()
        assert all(torch.isfinite(g).all() for g in estimate.theta.values())
        assert off(estimate.theta, unrolled(episode._replace(damping=5.0)).theta) < 1


def test_reptile_is_the_way_that_theta_goes():
    episode = convex_episode(steps=4)._replace(reward=Accuracy(), measured=(2, 4))
    estimate = reptile(episode)
    end = adapt(
        episode.learner,
        episode.meta_learner,
        detached(episode.start.theta),
        episode.task,
        alpha=episode.alpha,
        steps=4,
    )
    for name, moved in estimate.theta.items():
        assert torch.equal(moved, end.theta[name] - episode.start.theta[name])
        assert not moved.requires_grad
    assert estimate.phi == {}


@pytest.mark.parametrize("estimator", [Implicit(), Reptile()])
def test_what_has_something_else_to_learn_is_refused(estimator):
    name = type(estimator).__name__
    with pytest.raises(UsageError, match=f"{name} .* learn_init is false; give learn_init: true"):
        estimator.check(reward=NegativeLoss(), steps=2, measured=(2,), learn_init=False)
    with pytest.raises(UsageError, match=f"{name} .* phi of Gains would never move; use a rule"):
        estimator.check_rule(convex_episode(1, rule=Gains).meta_learner)
    estimator.check_rule(convex_episode(1).meta_learner)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "lu"}, "solver is 'lu'; give cg or neumann"),
        ({"iterations": -1}, "iterations is -1"),
        ({"damping": 0.0}, "damping is 0.0; give a positive"),
        ({"damping": float("nan")}, "damping is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Implicit(**options)


def test_implicit_refuses_what_it_does_not_look_at():
    with pytest.raises(UsageError, match=r"Accuracy has no gradient; .* Reptile"):
        Implicit().check(reward=Accuracy(), steps=2, measured=(2,), learn_init=True)
    with pytest.raises(UsageError, match=r"measurements is 2 .* give measurements: 1"):
        Implicit().check(reward=NegativeLoss(), steps=2, measured=(1, 2), learn_init=True)
