"""Meta-gradients of every rule and learner against central finite differences."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import (
    Episode,
    EvolutionStrategies,
    FirstOrder,
    Unrolled,
    first_order,
    unrolled,
)
from lightning_evolve.estimators.base import windows
from lightning_evolve.inner_loop import (
    Adapted,
    adapt,
    detached,
    detached_state,
    inner_steps,
    logits,
)
from lightning_evolve.learners import BERT, CNN, LSTM, Head
from lightning_evolve.meta_learners import (
    SGD,
    Adam,
    AdamW,
    CoordinateLSTM,
    CoordinateMLP,
    Gains,
    Linear,
    MetaSGD,
    Momentum,
    Muon,
    RelativeGains,
)
from lightning_evolve.rewards import Accuracy, NegativeLoss
from lightning_evolve.tasks import Batch, DataSpec, Task

ALPHA = 0.05


def text(rows: int, vocab: int = 12, length: int = 5) -> dict[str, torch.Tensor]:
    mask = torch.arange(length)[None] < torch.randint(2, length + 1, (rows, 1))
    return {
        "input_ids": torch.randint(1, vocab, (rows, length)) * mask,
        "attention_mask": mask.long(),
    }


LEARNERS = {
    "lstm": (
        partial(LSTM, embedding_size=3, hidden_size=4),
        DataSpec(num_classes=3, vocab_size=12),
        text,
    ),
    "cnn": (
        partial(CNN, channels=(2, 3)),
        DataSpec(num_classes=3, shape=(1, 8, 8)),
        lambda rows: {"images": torch.rand(rows, 1, 8, 8, dtype=torch.float64)},
    ),
    "bert": (
        partial(
            BERT,
            config={
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 8,
                "max_position_embeddings": 8,
            },
        ),
        DataSpec(num_classes=3, vocab_size=12),
        text,
    ),
    "head": (
        partial(Head, hidden_size=4),
        DataSpec(num_classes=3, shape=(5,)),
        lambda rows: {"features": torch.randn(rows, 5, dtype=torch.float64)},
    ),
}

# eps far above rounding: Adam's first step is the sign of the gradient, and a finite difference
# across the sign's jump would measure the jump.
EPS = 1e-2


def relative_gains(theta):
    rule = RelativeGains(theta, horizon=5)
    rule.eps = EPS
    return rule


RULES = {
    "gains": partial(Gains, horizon=5, eps=EPS),
    "relative_gains": relative_gains,
    "linear": partial(Linear, eps=EPS),
    "mlp": partial(CoordinateMLP, hidden_size=6, scale=0.5),
    "mlp_normalised": partial(CoordinateMLP, hidden_size=5, scale=0.5, normalised=True),
    "coordinate_lstm": partial(CoordinateLSTM, hidden_size=3, scale=0.5),
    "meta_sgd": partial(MetaSGD, steps=3),
    "per_step_rates": partial(MetaSGD, per="tensor", steps=5),
}


def make_episode(learner_name, rule, steps=5, measurements=None):
    torch.manual_seed(0)
    factory, spec, inputs = LEARNERS[learner_name]
    learner = factory(spec).double().requires_grad_(False)

    def batch(rows):
        return Batch(inputs(rows), torch.arange(rows) % 3, torch.arange(rows))

    theta = {n: p.detach() + 0.3 * torch.randn_like(p) for n, p in learner.named_parameters()}
    meta_learner = rule(theta).double()
    # Away from the zero start, where whole branches of a rule are silent.
    with torch.no_grad():
        for p in meta_learner.parameters():
            p.add_(0.3 * torch.randn_like(p))
    measured = tuple(measurements or range(1, steps + 1))
    return Episode(
        learner=learner,
        meta_learner=meta_learner,
        start=Adapted(theta, meta_learner.init(theta)),
        task=Task((batch(5), batch(4)), batch(6)),
        alpha=ALPHA,
        steps=steps,
        reward=NegativeLoss(),
        measured=measured,
    )


def reward_of_window(episode, start, window):
    """The rewards measured within a window that begins at a given theta and state."""
    total = torch.zeros((), dtype=torch.float64)
    steps = inner_steps(
        episode.learner, episode.meta_learner, start, episode.task, alpha=ALPHA, steps=window
    )
    for k, adapted in enumerate(steps, start=window.start + 1):
        if k in episode.measured:
            query = episode.task.query
            out = logits(episode.learner, adapted.theta, query)
            total += episode.reward(out, query.labels) / len(episode.measured)
    return total


def is_slope(along, difference):
    """Whether a central difference, extrapolated to the fourth order in its width, agrees to 1e-6.

    No width fits all rules: one that divides by a root has third derivatives that ask for a small
    one, and rounding asks for a large one. A wrong slope agrees with none.
    """
    return any(
        along == pytest.approx((4 * difference(h) - difference(2 * h)) / 3, rel=1e-6, abs=1e-10)
        for h in (1e-5, 1e-6, 1e-7)
    )


def finite_difference(episode, direction, truncation, h):
    """Central difference along a direction of phi, each window from where phi itself gets to."""
    phi = episode.meta_learner.phi()
    start, slope = episode.start, 0.0
    for window in windows(episode.steps, truncation):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for name, p in phi.items():
                    p.add_(direction[name], alpha=sign * h)
            values.append(reward_of_window(episode, start, window))
            with torch.no_grad():
                for name, p in phi.items():
                    p.sub_(direction[name], alpha=sign * h)
        slope += float(values[0] - values[1]) / (2 * h)
        *_, last = inner_steps(
            episode.learner, episode.meta_learner, start, episode.task, alpha=ALPHA, steps=window
        )
        start = Adapted(detached(last.theta), detached_state(last.state))
    return slope


def combinations(rules):
    """Every rule on every learner; on the slowest, which has tensors like the LSTM's, some."""
    slow = ["gains", "mlp", "muon"]
    return [(n, rule) for n in LEARNERS for rule in rules if n != "bert" or rule in slow]


def each_rule_and_each_learner(rules):
    """Every rule on one learner and one rule on every other: the combinations are for 5 steps."""
    return [("head", rule) for rule in rules] + [(n, "gains") for n in LEARNERS if n != "head"]


@pytest.mark.parametrize(
    ("learner", "rule", "steps", "truncation"),
    [
        *((*both, 5, 0) for both in combinations(RULES)),
        *((*both, 1, 0) for both in each_rule_and_each_learner(RULES)),
        *((*both, 5, 2) for both in each_rule_and_each_learner(RULES)),
    ],
)
def test_unrolled_is_the_derivative(learner, rule, steps, truncation):
    episode = make_episode(learner, RULES[rule], steps)
    estimate = unrolled(episode, truncation=truncation)
    torch.manual_seed(1)
    direction = {n: torch.randn_like(g) for n, g in estimate.phi.items()}
    along = sum(float((estimate.phi[n] * d).sum()) for n, d in direction.items())
    assert is_slope(along, partial(finite_difference, episode, direction, truncation))
    assert abs(along) > 1e-6, "a gradient of zero would agree with anything"


ALL_RULES = [*RULES, "sgd", "momentum", "adam", "adamw", "muon"]


@pytest.mark.parametrize(
    ("learner", "rule", "steps"),
    [
        *((*both, 5) for both in combinations(ALL_RULES)),
        *((*both, 1) for both in each_rule_and_each_learner(ALL_RULES)),
    ],
)
def test_initial_theta_gets_its_derivative_under_every_rule(learner, rule, steps):
    fixed = {
        "sgd": SGD,
        "momentum": Momentum,
        "adam": partial(Adam, eps=EPS),
        "adamw": partial(AdamW, eps=EPS),
        "muon": partial(Muon, eps=EPS),
    }
    episode = make_episode(learner, {**RULES, **fixed}[rule], steps)
    initial = detached(episode.start.theta, requires_grad=True)
    learned = episode._replace(start=episode.start._replace(theta=initial))
    estimate = unrolled(learned)
    direction = {n: torch.randn_like(t) for n, t in initial.items()}
    along = sum(float((estimate.theta[n] * d).sum()) for n, d in direction.items())

    def difference(h):
        values = []
        for sign in (1, -1):
            moved = {n: t.detach() + sign * h * direction[n] for n, t in initial.items()}
            start = Adapted(moved, episode.start.state)
            values.append(reward_of_window(episode, start, range(steps)))
        return float(values[0] - values[1]) / (2 * h)

    assert is_slope(along, difference)


def test_a_slope_that_is_off_in_the_sixth_digit_is_seen():
    episode = make_episode("head", RULES["mlp"])
    estimate = unrolled(episode)
    difference = partial(finite_difference, episode, estimate.phi, 0)
    along = sum(float(g.square().sum()) for g in estimate.phi.values())
    assert is_slope(along, difference)
    assert not is_slope(along * (1 + 3e-6), difference)


def test_first_order_is_the_hand_written_one():
    """Two steps of gains over Adam, with each support gradient as a constant."""
    episode = make_episode("head", RULES["gains"], steps=2, measurements=(2,))
    estimate = first_order(episode)
    rule, task = episode.meta_learner, episode.task
    gains = rule.log_gains.detach().requires_grad_()
    knots = rule.log_schedule.detach().requires_grad_()
    sharing = rule.sharing.detach().requires_grad_()
    names = list(episode.start.theta)
    theta = dict(episode.start.theta)
    m = {n: torch.zeros_like(t) for n, t in theta.items()}
    v = {n: torch.zeros_like(t) for n, t in theta.items()}
    for k in (0, 1):
        at = detached(theta, requires_grad=True)
        out = torch.func.functional_call(episode.learner, at, (), task.support[k].inputs)
        loss = functional.cross_entropy(out, task.support[k].labels)
        grads = torch.autograd.grad(loss, list(at.values()))
        position = 4 * torch.log1p(torch.tensor(float(k))) / torch.log1p(torch.tensor(5.0))
        left = int(position)
        schedule = knots[left] + (position.item() - left) * (knots[left + 1] - knots[left])
        moved = {}
        for i, (n, g) in enumerate(zip(names, grads, strict=True)):
            m[n] = 0.9 * m[n] + 0.1 * g
            v[n] = 0.999 * v[n] + 0.001 * g * g
            m_hat, v_hat = m[n] / (1 - 0.9 ** (k + 1)), v[n] / (1 - 0.999 ** (k + 1))
            own, shared = m_hat / (v_hat.sqrt() + EPS), m_hat / (v_hat.mean().sqrt() + EPS)
            step = (1 - sharing[i]) * own + sharing[i] * shared
            moved[n] = theta[n] - ALPHA * torch.exp(gains[i] + schedule) * step
        theta = moved
    out = torch.func.functional_call(episode.learner, theta, (), task.query.inputs)
    (-functional.cross_entropy(out, task.query.labels)).backward()
    torch.testing.assert_close(estimate.phi["log_gains"], gains.grad, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(estimate.phi["log_schedule"], knots.grad, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(estimate.phi["sharing"], sharing.grad, rtol=1e-6, atol=1e-10)
    exact = unrolled(episode)
    assert not torch.allclose(exact.phi["log_gains"], gains.grad, rtol=1e-4), "no Hessian at all?"


def test_first_order_initial_theta_is_the_gradient_at_the_adapted_theta():
    """FOMAML with SGD: d theta_K / d theta_0 is the identity."""
    episode = make_episode("cnn", SGD, steps=3, measurements=(3,))
    initial = detached(episode.start.theta, requires_grad=True)
    learned = episode._replace(start=episode.start._replace(theta=initial))
    estimate = first_order(learned)
    last = detached(
        adapt(
            episode.learner,
            episode.meta_learner,
            episode.start.theta,
            episode.task,
            alpha=ALPHA,
            steps=3,
        ).theta,
        requires_grad=True,
    )
    query = episode.task.query
    reward = NegativeLoss()(logits(episode.learner, last, query), query.labels)
    expected = torch.autograd.grad(reward, list(last.values()))
    for got, want in zip(estimate.theta.values(), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_evolution_strategies_are_unbiased():
    """The mean of many estimates lies within four of its own standard errors."""
    episode = make_episode("head", RULES["gains"], steps=3)
    exact = torch.cat([g.reshape(-1) for g in unrolled(episode).phi.values()])
    estimator = EvolutionStrategies(sigma=1e-2, pairs=1)
    draws = torch.stack(
        [
            torch.cat(
                [
                    g.reshape(-1)
                    for g in estimator(
                        episode._replace(task=episode.task._replace(index=i))
                    ).phi.values()
                ]
            )
            for i in range(200)
        ]
    )
    error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - exact).abs() < 4 * error + 1e-6).all()
    assert (draws.mean(dim=0) - 2 * exact).abs().max() > 4 * error.max(), "the test has no power"


def test_evolution_strategies_leave_phi_as_it_was_and_depend_on_the_index_only():
    episode = make_episode("head", RULES["mlp"], steps=2)
    before = {n: p.detach().clone() for n, p in episode.meta_learner.phi().items()}
    estimator = EvolutionStrategies()
    first, again = estimator(episode), estimator(episode)
    for n, p in episode.meta_learner.phi().items():
        assert torch.equal(p, before[n])
        assert torch.equal(first.phi[n], again.phi[n])
    other = estimator(episode._replace(task=episode.task._replace(index=1)))
    assert not torch.equal(first.phi["network.0.weight"], other.phi["network.0.weight"])


def test_evolution_strategies_climb_a_reward_without_a_gradient():
    episode = make_episode("head", RULES["gains"], steps=4)._replace(reward=Accuracy())
    estimate = EvolutionStrategies(sigma=1.0, pairs=20)(episode)
    assert sum(float(g.abs().sum()) for g in estimate.phi.values()) > 0


@pytest.mark.parametrize("estimator", [Unrolled(), FirstOrder()])
def test_rewards_without_a_gradient_are_refused(estimator):
    with pytest.raises(UsageError, match="EvolutionStrategies"):
        estimator.check(reward=Accuracy(), steps=2, measured=(2,), learn_init=False)


def test_an_update_in_place_on_data_would_lose_phi():
    """Negative control: the sketch's ``p.data.add_`` cuts the graph, and phi gets no gradient."""
    episode = make_episode("head", RULES["gains"], steps=1)
    theta = detached(episode.start.theta, requires_grad=True)
    out = logits(episode.learner, theta, episode.task.support[0])
    loss = functional.cross_entropy(out, episode.task.support[0].labels)
    grads = torch.autograd.grad(loss, list(theta.values()))
    direction, _ = episode.meta_learner(
        dict(zip(theta, grads, strict=True)), theta, episode.start.state
    )
    for name, p in theta.items():
        p.data.add_(ALPHA * direction[name].detach())
    query = episode.task.query
    reward = NegativeLoss()(logits(episode.learner, theta, query), query.labels)
    phi = list(episode.meta_learner.phi().values())
    assert torch.autograd.grad(reward, phi, allow_unused=True) == (None,) * len(phi)
