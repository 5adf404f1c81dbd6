"""Policy gradients against quadrature of the expectation that they estimate."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import (
    ActorCritic,
    Episode,
    Estimator,
    EvolutionStrategies,
    Reinforce,
    actor_critic,
    reinforce,
    unrolled,
)
from lightning_evolve.estimators.actor_critic import improvements, roll_out
from lightning_evolve.estimators.perturbation import play
from lightning_evolve.inner_loop import Adapted, detached, logits
from lightning_evolve.learners import Head
from lightning_evolve.meta_learners import Adam, Controller, Gains, MetaLearner
from lightning_evolve.noise import generator
from lightning_evolve.rewards import Accuracy, NegativeLoss
from lightning_evolve.tasks import Batch, DataSpec, Task
from tests.mathematics.test_meta_gradients import is_slope
from tests.mathematics.test_rules import ALPHA, run, run_torch


class TwoGains(MetaLearner):
    """Two numbers of phi, over which one can integrate."""

    accumulators = ("m", "v")

    def __init__(self, params):
        super().__init__(params)
        self.adam = Adam(params, eps=1e-3)
        self.log_gains = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, grads, params, state):
        direction, state = self.adam(grads, params, state)
        gains = self.log_gains.exp()
        return {n: d * g for (n, d), g in zip(direction.items(), gains, strict=True)}, state


def make_episode(rule, steps=2, reward=None, measured=None):
    """A linear classifier, so that there are two tensors and every reward is smooth."""
    torch.manual_seed(0)  # a rule's networks are drawn from the global generator
    draw = torch.Generator().manual_seed(0)
    learner = (
        Head(DataSpec(num_classes=3, shape=(5,)), hidden_size=0).double().requires_grad_(False)
    )

    def batch(rows):
        features = torch.randn(rows, 5, generator=draw, dtype=torch.float64)
        return Batch({"features": features}, torch.arange(rows) % 3, torch.arange(rows))

    theta = {
        n: 0.3 * torch.randn(p.shape, generator=draw, dtype=torch.float64)
        for n, p in learner.named_parameters()
    }
    meta_learner = rule(theta).double()
    return Episode(
        learner=learner,
        meta_learner=meta_learner,
        start=Adapted(theta, meta_learner.init(theta)),
        task=Task((batch(5), batch(4)), batch(6)),
        alpha=0.1,
        steps=steps,
        reward=reward or NegativeLoss(),
        measured=measured or tuple(range(1, steps + 1)),
    )


def away_from_the_start(rule):
    """Every parameter somewhere, so that no branch of a rule is silent."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draw).to(p))


def flat(tensors, names=None):
    return torch.cat([t.reshape(-1) for n, t in tensors.items() if names is None or n in names])


def estimates(estimator, episode, count, names=None):
    return torch.stack(
        [
            flat(estimator(episode._replace(task=episode.task._replace(index=i))).phi, names)
            for i in range(count)
        ]
    )


def errors(draws, exact):
    """Distance of the mean of many estimates from the truth, in standard errors of that mean."""
    standard = draws.std(dim=0) / len(draws) ** 0.5
    return (draws.mean(dim=0) - exact).abs() / (standard + 1e-12)


def gauss_hermite(nodes, dimensions):
    """Points and weights of the expectation over a standard Gaussian."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    for index in product(range(nodes), repeat=dimensions):
        yield x[list(index)], float(np.prod(w[list(index)]))


# ------------------------------------------------------------------- in parameter space


def test_reinforce_is_unbiased_for_the_smoothed_reward():
    episode, sigma = make_episode(TwoGains), 1.2
    phi = episode.meta_learner.log_gains
    center, exact = phi.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for z, weight in gauss_hermite(12, 2):
        with torch.no_grad():
            phi.copy_(center + sigma * torch.from_numpy(z))
        exact += weight * float(play(episode)[0]) * torch.from_numpy(z) / sigma
    with torch.no_grad():
        phi.copy_(center)
    draws = estimates(Reinforce(sigma=sigma, population=4), episode, 300)
    assert (errors(draws, exact) < 4).all()
    # Wrong variants that the same check must find.
    assert (errors(0.75 * draws, exact) > 4).any(), "a baseline that includes the run itself"
    assert (errors(draws, unrolled(episode).phi["log_gains"]) > 4).any(), "nothing smoothed"


def test_reinforce_puts_phi_back_and_climbs_a_reward_without_a_gradient():
    episode = make_episode(TwoGains, reward=Accuracy())
    before = episode.meta_learner.log_gains.detach().clone()
    estimate = reinforce(episode, sigma=2.0, population=16)
    assert torch.equal(episode.meta_learner.log_gains, before)
    assert estimate.phi["log_gains"].abs().sum() > 0
    again = reinforce(episode, sigma=2.0, population=16)
    assert torch.equal(estimate.phi["log_gains"], again.phi["log_gains"])


# ------------------------------------------------------------------- in action space


class Replayed(MetaLearner):
    """A controller whose noise is given: the reparametrised policy, with a graph."""

    def __init__(self, controller, noise):
        super().__init__(dict.fromkeys(controller.names, torch.empty(0)))
        self.controller, self.noise = controller, noise

    def forward(self, grads, params, state):
        observation = self.controller.observe(grads, params, state)
        policy = self.controller.policy(observation.statistics)
        action = policy.mean + policy.stddev * self.noise[state.step]
        return self.controller.act(observation, action)


def expected_return(episode, gamma, nodes=3):
    """E[sum gamma^k r_k] by quadrature over all noise, with its graph."""
    query, total = episode.task.query, 0.0
    start = episode.reward(logits(episode.learner, episode.start.theta, query), query.labels)
    for z, weight in gauss_hermite(nodes, 2 * episode.steps):
        noise = torch.from_numpy(z).view(episode.steps, 2)
        playing = episode._replace(meta_learner=Replayed(episode.meta_learner, noise))
        begin = Adapted(detached(episode.start.theta, requires_grad=True), episode.start.state)
        score = start
        for k, adapted in playing.walk(begin, range(episode.steps), "full"):
            after = episode.reward(logits(episode.learner, adapted.theta, query), query.labels)
            counted = sum(m >= k for m in episode.measured) / len(episode.measured)
            total = total + weight * gamma ** (k - 1) * counted * (after - score)
            score = after
    return total


POLICY = {"log_gains", "log_spreads", *(f"policy_network.{n}" for n in ("0.bias", "2.weight"))}


@pytest.fixture
def walked():
    episode = make_episode(partial(Controller, horizon=2, spread=0.5, hidden_size=3, scale=1.0))
    away_from_the_start(episode.meta_learner)
    with torch.no_grad():
        # A critic with strong views, and wrong ones: the better the score, the less it expects.
        first, _, last = episode.meta_learner.critic
        first.weight.zero_()
        first.weight[:, -2], first.bias[:] = 0.3, 0.446
        last.weight.fill_(-2.0)
    return episode


def test_actor_critic_is_unbiased_whatever_the_critic_says(walked):
    gamma = 0.6
    phi = {n: p for n, p in walked.meta_learner.phi().items() if n in POLICY}
    value = expected_return(walked, gamma)
    exact = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(phi.values()))])
    options = dict(rollouts=20, gamma=gamma, value_weight=0.0)
    draws = estimates(ActorCritic(gae_lambda=1.0, **options), walked, 100, POLICY)
    assert (errors(draws, exact) < 4).all()
    assert (errors(2 * draws, exact) > 4).any(), "the test has no power"
    # An estimate that believes the critic.
    believing = estimates(ActorCritic(gae_lambda=0.0, **options), walked, 20, POLICY)
    assert (errors(believing, exact) > 4).any()


def test_without_discount_the_return_is_the_reward_less_that_of_the_start(walked):
    for measured in ((2,), (1, 2)):
        episode = walked._replace(measured=measured)
        query = episode.task.query
        value = float(expected_return(episode, 1.0).detach())
        start = episode.reward(logits(episode.learner, episode.start.theta, query), query.labels)
        rewards = torch.stack(
            [
                actor_critic(
                    episode._replace(task=episode.task._replace(index=i)), rollouts=20
                ).reward
                for i in range(20)
            ]
        )
        error = rewards.std() / len(rewards) ** 0.5
        assert abs(float(rewards.mean() - start) - value) < 4 * error


def test_scoring_seldom_changes_no_return(walked):
    """Without a critic the estimate is a sum of returns from each step on."""
    episode, asked = walked._replace(steps=5, measured=(2, 5)), []
    reward = episode.reward
    episode = episode._replace(reward=lambda *given: asked.append(1) or reward(*given))
    options = dict(rollouts=1, gae_lambda=1.0, value_weight=0.0)
    controller = episode.meta_learner
    first = episode.score(episode.start.theta, 0)[1].detach()
    runs = [
        roll_out(episode, controller, torch.Generator().manual_seed(0), first, score_every)
        for score_every in (1, 2, 9)
    ]
    assert len(asked) == 1 + 5 + 3 + 2, "the start; all; steps 2, 4 and 5; steps 2 and 5"
    asked.clear()
    actor_critic(episode, rollouts=4)
    assert len(asked) == 1 + 4 * 5, "the start once for all runs"
    every, second, measured = (run.scores for run in runs)
    torch.testing.assert_close(second, every[[0, 0, 2, 2, 4, 5]])
    torch.testing.assert_close(measured, every[[0, 0, 2, 2, 2, 5]])
    often, seldom = (actor_critic(episode, score_every=n, **options) for n in (1, 9))
    torch.testing.assert_close(often.reward, seldom.reward)
    phi = {n: p for n, p in walked.meta_learner.phi().items() if n in POLICY}
    value = expected_return(walked, 1.0)
    exact = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(phi.values()))])
    draws = estimates(
        ActorCritic(rollouts=20, gae_lambda=1.0, value_weight=0.0, score_every=2),
        walked,
        60,
        POLICY,
    )
    assert (errors(draws, exact) < 4).all()


def test_a_discount_of_0_leaves_the_first_step_alone(walked):
    both = actor_critic(walked._replace(measured=(2,)), gamma=0.0, value_weight=0.0)
    first = actor_critic(walked._replace(steps=1, measured=(1,)), gamma=0.0, value_weight=0.0)
    for name in POLICY:
        torch.testing.assert_close(both.phi[name], first.phi[name])


def test_improvements_add_up_to_the_reward_less_the_start():
    scores = torch.rand(3, 8, dtype=torch.float64)
    for measured in ((7,), (4, 7), (1, 3, 5, 7), tuple(range(1, 8))):
        gained = scores[:, list(measured)].mean(dim=1) - scores[:, 0]
        torch.testing.assert_close(improvements(scores, measured).sum(dim=1), gained)


def test_the_value_function_converges_to_the_return(walked):
    controller = walked.meta_learner
    critic = {n: p for n, p in controller.phi().items() if n.startswith("critic")}
    run = roll_out(
        walked, controller, generator(0, 0), walked.score(walked.start.theta, 0)[1].detach()
    )
    first = (run.statistics[0], run.scores[0], torch.ones((), dtype=torch.float64))
    untrained = float(controller.value(*first).detach())
    optimizer = torch.optim.Adam(critic.values(), lr=0.02)
    for index in range(200):
        task = walked.task._replace(index=index)
        estimate = actor_critic(walked._replace(task=task), rollouts=4)
        for n, p in critic.items():
            p.grad = -estimate.phi[n]
        optimizer.step()
    expected = float(expected_return(walked, 1.0).detach())
    value = float(controller.value(*first).detach())
    assert value == pytest.approx(expected, abs=0.1 * abs(expected) + 0.02)
    assert abs(untrained - expected) > 0.1, "it had something to learn"


def test_entropy_raises_the_spread_of_every_action(walked):
    plain = actor_critic(walked, entropy=0.0)
    bonus = actor_critic(walked, entropy=0.1)
    gained = bonus.phi["log_spreads"] - plain.phi["log_spreads"]
    # The entropy of a Gaussian is log sigma and a constant, in each of the two steps.
    torch.testing.assert_close(gained, torch.full_like(gained, 0.2))
    torch.testing.assert_close(bonus.phi["log_gains"], plain.phi["log_gains"])


def test_the_controller_starts_as_adam_and_is_evaluated_at_its_mean():
    ours = run(Controller)
    theirs = run_torch(partial(torch.optim.Adam, lr=ALPHA))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-11)
    episode = make_episode(Controller)
    one, other = play(episode), play(episode)
    assert torch.equal(one[1], other[1])
    drawn = actor_critic(episode, rollouts=1)
    assert not torch.equal(drawn.logits, one[1])
    kept = actor_critic(episode._replace(carries_on=True), rollouts=1)
    assert torch.equal(kept.logits, one[1])


def test_a_controller_of_some_of_its_tensors_does_the_same_to_them(walked):
    rule, theta = walked.meta_learner, walked.start.theta
    grads = {n: torch.ones_like(t) for n, t in theta.items()}
    whole, _ = rule(grads, theta, rule.init(theta))
    (name,) = part = ["head.bias"]
    few = rule.over({name: theta[name]})
    alone, _ = few({name: grads[name]}, {name: theta[name]}, few.init({n: theta[n] for n in part}))
    torch.testing.assert_close(alone[name], whole[name])
    with pytest.raises(UsageError, match="other"):
        rule.over({"other": torch.zeros(1)})


def test_the_controller_has_exact_derivatives_at_its_mean(walked):
    estimate = unrolled(walked)
    draw = torch.Generator().manual_seed(2)
    phi = walked.meta_learner.phi()
    direction = {n: torch.randn(p.shape, generator=draw).to(p) for n, p in phi.items()}
    along = sum(float((estimate.phi[n] * d).sum()) for n, d in direction.items())

    def difference(h):
        values = []
        for by in (h, -2 * h, h):
            with torch.no_grad():
                for n, p in phi.items():
                    p.add_(direction[n], alpha=by)
            values.append(float(play(walked)[0]))
        return (values[0] - values[1]) / (2 * h)

    assert is_slope(along, difference)
    assert not is_slope(along * (1 + 3e-6), difference)
    assert abs(along) > 1e-4


def test_a_gradient_of_zero_has_finite_statistics():
    theta = {"w": torch.zeros(3, 2)}
    rule = Controller(theta)
    grad = torch.zeros(3, 2, requires_grad=True)
    observation = rule.observe({"w": grad}, theta, rule.init(theta))
    assert torch.isfinite(observation.statistics).all()
    (slope,) = torch.autograd.grad(observation.statistics.sum(), grad)
    assert torch.isfinite(slope).all()


# ------------------------------------------------------------------- shared by processes


@pytest.mark.parametrize("estimator", [EvolutionStrategies(pairs=4), ActorCritic(rollouts=4)])
@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_a_task_average_to_the_whole(estimator, parts):
    episode = make_episode(Controller)
    whole = estimator(episode)
    shared = [
        estimator(episode._replace(task=episode.task._replace(share=(part, parts))))
        for part in range(parts)
    ]
    for name, g in whole.phi.items():
        torch.testing.assert_close(torch.stack([e.phi[name] for e in shared]).mean(dim=0), g)
    torch.testing.assert_close(torch.stack([e.reward for e in shared]).mean(), whole.reward)
    assert not torch.allclose(shared[0].phi["log_gains"], shared[1].phi["log_gains"])


def test_a_population_that_does_not_divide_is_refused():
    with pytest.raises(UsageError, match="multiple of 2"):
        EvolutionStrategies(pairs=3).check_share(2)
    with pytest.raises(UsageError, match="multiple of 4"):
        ActorCritic(rollouts=6).check_share(4)
    for estimator in (Reinforce(), Estimator()):
        with pytest.raises(UsageError, match="tasks_per_step"):
            estimator.check_share(2)


def test_noise_is_a_function_of_its_numbers():
    draws = {
        numbers: torch.randn(2, generator=generator(*numbers))
        for numbers in product(range(3), range(3), range(3))
    }
    assert len({tuple(d.tolist()) for d in draws.values()}) == len(draws)


@pytest.mark.parametrize(
    ("wrong", "value"),
    [
        (partial(Reinforce, population=1), "population is 1"),
        (partial(Reinforce, sigma=0.0), "sigma is 0.0"),
        (partial(ActorCritic, rollouts=0), "rollouts is 0"),
        (partial(ActorCritic, score_every=0), "score_every is 0"),
        (partial(ActorCritic, gamma=1.5), "gamma is 1.5"),
        (partial(ActorCritic, gae_lambda=-0.1), "gae_lambda is -0.1"),
        (partial(ActorCritic, entropy=float("nan")), "entropy is nan"),
        (partial(Controller, {}, spread=0.0), "spread is 0.0"),
        (partial(Controller, {}, horizon=0), "horizon is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, value):
    with pytest.raises(UsageError, match=value) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_actor_critic_needs_a_rule_that_acts_at_random():
    ActorCritic().check_rule(Controller({"w": torch.zeros(1)}))
    with pytest.raises(UsageError, match="Gains"):
        ActorCritic().check_rule(Gains({"w": torch.zeros(1)}))
    for estimator in (ActorCritic(), Reinforce()):
        with pytest.raises(UsageError, match="initial theta"):
            estimator.check(reward=Accuracy(), steps=2, measured=(2,), learn_init=True)
