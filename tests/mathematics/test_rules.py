"""Update rules against torch's own optimizers, and what they do at the edges."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners import SGD, Adam, AdamW, CoordinateMLP, Gains, Linear, Momentum

ALPHA = 0.03


def run(rule_factory, steps=7, dtype=torch.float64):
    torch.manual_seed(0)
    theta = {"a": torch.randn(4, 3, dtype=dtype), "b": torch.randn(3, dtype=dtype)}
    rule = rule_factory(theta).to(dtype)
    state = rule.init(theta)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(steps):
            grads = {
                n: torch.randn(t.shape, generator=generator, dtype=dtype) for n, t in theta.items()
            }
            direction, state = rule(grads, theta, state)
            theta = {n: t + ALPHA * direction[n] for n, t in theta.items()}
    return theta


def run_torch(optimizer, steps=7):
    torch.manual_seed(0)
    a = torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    b = torch.randn(3, dtype=torch.float64).requires_grad_()
    opt = optimizer([a, b])
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in (a, b):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        opt.step()
    return {"a": a.detach(), "b": b.detach()}


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (SGD, partial(torch.optim.SGD, lr=ALPHA)),
        (Momentum, partial(torch.optim.SGD, lr=ALPHA, momentum=0.9)),
        (Adam, partial(torch.optim.Adam, lr=ALPHA)),
        (AdamW, partial(torch.optim.AdamW, lr=ALPHA)),
        # The learned rules start as Adam.
        (Gains, partial(torch.optim.Adam, lr=ALPHA)),
        (Linear, partial(torch.optim.Adam, lr=ALPHA)),
        (CoordinateMLP, partial(torch.optim.Adam, lr=ALPHA)),
    ],
)
def test_rule_equals_torch(rule, optimizer):
    ours, theirs = run(rule), run_torch(optimizer)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-11)


def test_groups_scale_the_named_tensors_only():
    plain, grouped = run(Adam, steps=1), run(partial(Adam, ratios={"a": 10.0}), steps=1)
    start = run(Adam, steps=0)
    torch.testing.assert_close(grouped["a"] - start["a"], 10 * (plain["a"] - start["a"]))
    torch.testing.assert_close(grouped["b"], plain["b"])


def test_a_pattern_that_names_nothing_is_refused():
    with pytest.raises(UsageError, match="embeding"):
        Adam({"embedding.weight": torch.zeros(1)}, ratios={"embeding.*": 2.0})


@pytest.mark.parametrize("rule", [Adam, Gains, Linear, CoordinateMLP])
def test_a_gradient_of_zero_moves_nothing_and_has_finite_derivatives(rule):
    theta = {"w": torch.zeros(3, 2)}
    meta_learner = rule(theta)
    grad = torch.zeros(3, 2, requires_grad=True)
    direction, _ = meta_learner({"w": grad}, theta, meta_learner.init(theta))
    assert torch.equal(direction["w"], torch.zeros(3, 2))
    (slope,) = torch.autograd.grad(direction["w"].sum(), grad)
    assert torch.isfinite(slope).all()


def test_the_schedule_stops_at_its_horizon():
    rule = Gains({"w": torch.zeros(1)}, horizon=10, knots=3)
    with torch.no_grad():
        rule.log_schedule.copy_(torch.tensor([0.0, 1.0, 5.0]))
    rule.requires_grad_(False)
    assert rule.schedule(0) == 0
    assert rule.schedule(10) == pytest.approx(5)
    assert rule.schedule(10_000) == pytest.approx(5)
    assert 0 < rule.schedule(1) < rule.schedule(5) < 5


@pytest.mark.parametrize(
    "wrong",
    [
        partial(Gains, horizon=0),
        partial(Gains, knots=1),
        partial(Momentum, momentum=1.0),
        partial(CoordinateMLP, hidden_size=0),
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        wrong({"w": torch.zeros(1)})
