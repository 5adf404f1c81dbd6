"""RelativeGains against a hand computation, and what makes one alpha serve many networks."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from lightning_evolve.meta_learners import Adam, Gains, RelativeGains
from lightning_evolve.meta_learners.base import State
from lightning_evolve.optim import LearnedOptimizer

THETA = {
    "embedding.weight": torch.full((6, 2), 2.0),
    "body.weight": torch.full((3, 2), 0.5),
    "body.bias": torch.zeros(3),
    "head.weight": torch.zeros(2, 3),
}
GRADS = {
    n: torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for n, t in THETA.items()
}


def test_phi_zero_is_adam_relative_to_size_and_depth():
    ours, state = RelativeGains(THETA), Adam(THETA)
    got, _ = ours(GRADS, THETA, ours.init(THETA))
    adam, _ = state(GRADS, THETA, state.init(THETA))
    sizes = {"embedding.weight": 2.0, "body.weight": 0.5, "body.bias": 0.03, "head.weight": 1 / 3}
    for name, size in sizes.items():
        torch.testing.assert_close(got[name], adam[name] * size / 3)  # 3 matrices


def test_features_are_those_that_the_gradients_show():
    rule = RelativeGains(THETA)
    state, before = rule.init(THETA), None
    with torch.no_grad():
        rule.response.copy_(torch.tensor([0.0, math.log(2)]))
    for sign in (1.0, 1.0, -1.0):
        grads = {n: sign * g for n, g in GRADS.items()}
        plain = Gains(THETA, per="role")
        adam, _ = plain(grads, THETA, State(state.step, state.accumulators))
        direction, state = rule(grads, THETA, state)
        ratio = (direction["body.weight"] / adam["body.weight"]).mean() * 3 / 0.5
        # tanh of the product of gradient and momentum over the mean square: 1, 1, then negative.
        before = [*(before or []), ratio.item()]
    agreed = 2 ** (2 * math.tanh(1) - 1)
    assert before[0] == pytest.approx(agreed, rel=1e-4)
    assert before[1] == pytest.approx(agreed, rel=1e-4)
    assert before[2] < 1


def test_the_depth_is_that_of_the_model_it_is_taken_to():
    rule = RelativeGains(THETA)
    body = {name: t for name, t in THETA.items() if name.startswith("body")}
    assert (rule.layers, rule.over(body).layers, rule.within(body).layers) == (3, 1, 3)
    assert rule.over(body).response is rule.response


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_no_scale_of_the_network_is_left(scale):
    theta = {n: t.clone() for n, t in THETA.items() if n != "head.weight"}
    larger = {**theta, "embedding.weight": theta["embedding.weight"] * 10}
    rule = RelativeGains(theta)
    grads = {n: GRADS[n] * scale for n in theta}
    one, _ = rule(grads, theta, rule.init(theta))
    two, _ = rule({n: GRADS[n] for n in theta}, larger, rule.init(larger))
    torch.testing.assert_close(
        two["embedding.weight"], 10 * one["embedding.weight"], rtol=1e-3, atol=0
    )
    torch.testing.assert_close(two["body.bias"], one["body.bias"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("learned", [-2.0, 3.0])
def test_no_coordinate_ascends_whatever_is_learned_of_sharing(learned):
    """Of a gradient whose coordinates differ a thousand times, as those of encoders do."""
    theta = {"body.weight": torch.ones(1, 3)}
    rule = RelativeGains(theta)
    with torch.no_grad():
        rule.sharing.fill_(learned)
    got, _ = rule({"body.weight": torch.tensor([[1e-3, 1.0, 1e-2]])}, theta, rule.init(theta))
    assert (got["body.weight"] < 0).all()


def test_what_phi_says_of_roles_that_it_has_not_met_is_not_heeded():
    body = {name: t for name, t in THETA.items() if name.startswith("body")}
    rule, plain = RelativeGains(body), RelativeGains(THETA)
    with torch.no_grad():
        rule.log_gains.fill_(2.0)
        rule.sharing.fill_(1.0)
    with pytest.warns(UserWarning, match="the role embedding or head"):
        elsewhere = rule.over(THETA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough: an optimizer asks in every step
        twice = elsewhere.within(THETA)
    got, _ = twice(GRADS, THETA, twice.init(THETA))
    want, _ = plain(GRADS, THETA, plain.init(THETA))
    torch.testing.assert_close(got["embedding.weight"], want["embedding.weight"])
    torch.testing.assert_close(got["head.weight"], want["head.weight"])
    assert not torch.allclose(got["body.weight"], want["body.weight"])


def test_rows_that_are_never_looked_up_do_not_count():
    """A vocabulary ten times as large has the same steps, whoever shares a second moment."""

    def direction(vocabulary: int) -> torch.Tensor:
        theta = {"embedding.weight": torch.full((vocabulary, 2), 2.0)}
        rule = RelativeGains(theta)
        with torch.no_grad():
            rule.sharing.fill_(1.0)
        grad = torch.zeros(vocabulary, 2)
        grad[1:4] = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]])
        got, _ = rule({"embedding.weight": grad}, theta, rule.init(theta))
        return got["embedding.weight"][1:4]

    torch.testing.assert_close(direction(60), direction(6))
    shared = math.sqrt((1 + 4 + 1 + 9) / 6)
    assert direction(6)[0, 1].item() == pytest.approx(-2 * 2.0 / shared, rel=1e-4)


def test_an_embedding_without_a_gradient_stays_where_it_is():
    theta = {"embedding.weight": torch.full((6, 2), 2.0)}
    rule = RelativeGains(theta)
    with torch.no_grad():
        rule.sharing.fill_(1.0)
    got, _ = rule({"embedding.weight": torch.zeros(6, 2)}, theta, rule.init(theta))
    torch.testing.assert_close(got["embedding.weight"], torch.zeros(6, 2))


def test_an_optimizer_counts_the_layers_of_the_whole_model():
    """Also in a step in which some of them have no gradient."""
    model = torch.nn.ModuleDict({n: torch.nn.Linear(4, 4) for n in ("one", "two")})
    optimizer = LearnedOptimizer(model.named_parameters(), RelativeGains, lr=0.1)
    with torch.no_grad():
        model["one"].weight.fill_(0.5)  # more than torch draws for 4 inputs
    before = model["one"].weight.detach().clone()
    model["one"].weight.grad = torch.ones(4, 4)
    optimizer.step()
    moved = (before - model["one"].weight).mean() / before.square().mean().sqrt()
    assert moved.item() == pytest.approx(0.1 / 2, rel=1e-3)
