"""The outer step over generations, and proposers over settings."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from lightning_evolve.errors import UsageError
from lightning_evolve.evaluation import interval
from lightning_evolve.evolution.optimisation import Optimisation
from lightning_evolve.evolution.outer_step import OuterStep, ascent, perturbations
from lightning_evolve.evolution.proposers import RandomSearch, ThompsonSampling
from lightning_evolve.evolution.training import Training
from lightning_evolve.meta_learners import Adam, Gains, MetaSGD

PHI = {"gain": torch.tensor([0.0, 1.0, -1.0]), "bias": torch.tensor([[2.0]])}
SLOPE = {"gain": torch.tensor([1.0, -2.0, 0.5]), "bias": torch.tensor([[3.0]])}
SPACE = {
    "alpha": [0.1, 0.03, 0.3, 1.0],
    "steps": [20, 5, 50, 100],
    "replay": [0.25, 0.0, 0.5, 0.75],
    "adapt": [["head"], ["all"]],
}
PROPOSERS = [ThompsonSampling, RandomSearch]


def linear(phi):
    return sum(float((SLOPE[name] * p).sum()) for name, p in phi.items())


def test_perturbations_are_antithetic_and_a_function_of_seed_and_generation():
    found = perturbations(PHI, 3, 0.1, seed=4)
    assert len(found) == 6
    for up, down in zip(found[::2], found[1::2], strict=True):
        for name, p in PHI.items():
            torch.testing.assert_close(up[name] + down[name], 2 * p)
            assert not torch.equal(up[name], p)
    again = perturbations(PHI, 3, 0.1, seed=4)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(found, again, strict=True) for n in PHI)
    flat = [found[0]["gain"], found[2]["gain"]]
    flat += [perturbations(PHI, 1, 0.1, seed, g)[0]["gain"] for seed, g in ((4, 1), (5, 0))]
    assert len({tuple(x.tolist()) for x in flat}) == 4
    wide = torch.cat([v["gain"] - PHI["gain"] for v in perturbations(PHI, 2000, 0.1, seed=0)])
    assert float(wide.std()) == pytest.approx(0.1, rel=0.05)


def test_ascent_by_hand_and_in_the_mean():
    variants = perturbations(PHI, 2, 0.1, seed=1)
    rewards = [3.0, 1.0, -0.5, 0.5]
    epsilons = [(variants[i]["gain"] - PHI["gain"]) / 0.1 for i in (0, 2)]
    expected = (2.0 / 0.2 * epsilons[0] + -1.0 / 0.2 * epsilons[1]) / 2
    torch.testing.assert_close(ascent(PHI, rewards, 0.1, seed=1)["gain"], expected)

    many = [linear(variant) for variant in perturbations(PHI, 4000, 0.1, seed=0)]
    for name, slope in ascent(PHI, many, 0.1, seed=0).items():
        torch.testing.assert_close(slope, SLOPE[name], atol=0.25, rtol=0)


def test_a_pair_with_a_diverged_challenger_is_left_out():
    rewards = [3.0, 1.0, math.nan, 0.5]
    one = ascent(PHI, rewards[:2], 0.1, seed=1)
    two = ascent(PHI, rewards, 0.1, seed=1)
    for name in PHI:
        torch.testing.assert_close(one[name], two[name])
    outer = OuterStep(PHI, pairs=1)
    kept = outer.step([math.inf, 0.0])
    assert torch.equal(kept["gain"], PHI["gain"])
    assert outer.generation == 1


def test_the_first_outer_step_ascends_by_beta():
    outer = OuterStep(PHI, beta=0.05, pairs=200)
    after = outer.step([linear(variant) for variant in outer.perturbations()])
    for name, p in PHI.items():  # the first step of Adam is the sign of the gradient
        torch.testing.assert_close(after[name], p + 0.05 * SLOPE[name].sign())


def test_the_outer_step_resumes_exactly_from_a_file():
    def reward(phi):
        return -float((phi["gain"] ** 2).sum() + (phi["bias"] - 1).abs().sum())

    def run(outer, steps):
        for _ in range(steps):
            outer.step([reward(variant) for variant in outer.perturbations()])
        return outer

    whole = run(OuterStep(PHI, seed=3), 7)
    for at in (0, 3):
        saved = load(save(run(OuterStep(PHI, seed=3), at).state_dict()))
        fresh = OuterStep({name: torch.zeros_like(p) for name, p in PHI.items()}, seed=3)
        fresh.load_state_dict(saved)
        run(fresh, 7 - at)
        assert fresh.generation == 7
        for name, value in whole.state_dict().items():
            assert torch.equal(value, fresh.state_dict()[name]), name


def test_the_outer_step_leaves_alone_what_it_was_given():
    phi = {"x": torch.nn.Parameter(torch.zeros(1))}
    outer = OuterStep(phi, pairs=1)
    given = outer.step([1.0, 0.0])
    given["x"] += 5
    assert float(phi["x"].detach()) == 0
    assert abs(float(outer.phi["x"])) < 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OuterStep(PHI, beta=0), "beta is 0"),
        (lambda: OuterStep(PHI, sigma=-1), "sigma is -1"),
        (lambda: OuterStep(PHI, pairs=0), "pairs is 0"),
        (lambda: OuterStep(PHI).load_state_dict({"phi.other": torch.zeros(1)}), "start a new run"),
        (lambda: RandomSearch({"alpha": []}), "alpha has no choices"),
        (lambda: RandomSearch({"alpha": [1, 2, 1]}), "alpha has a choice twice"),
        (lambda: RandomSearch({str(n): [0, 1, 2] for n in range(12)}), "531441 combinations"),
        (lambda: RandomSearch(SPACE, forgetting=0), "forgetting is 0"),
        (lambda: RandomSearch(SPACE, price=-1), "price is -1"),
        (lambda: ThompsonSampling(SPACE, scale=0), "scale is 0"),
        (lambda: RandomSearch({"a": [1]}).observe({"a": 2}, 0.0), "a: 2 is none of the choices"),
        (lambda: RandomSearch(SPACE).observe({"steps": 5}, 0.0), "give all of"),
        (
            lambda: RandomSearch({"a": [1]}).load_state_dict(RandomSearch(SPACE).state_dict()),
            "start a new run",
        ),
    ],
)
def test_refusals(make, said):
    with pytest.raises(UsageError, match=said):
        make()


@pytest.mark.parametrize("kind", PROPOSERS)
def test_the_default_comes_first_and_no_setting_twice(kind):
    proposer = kind(SPACE)
    default = {name: choices[0] for name, choices in SPACE.items()}
    assert proposer.best() == default
    found = proposer.propose(128, seed=0)
    assert found[0] == default
    assert len({json.dumps(settings) for settings in found}) == 128
    assert len(proposer.propose(500, seed=0)) == 128
    assert found == proposer.propose(128, seed=0), "a function of the seed and of what it has seen"
    assert found != proposer.propose(128, seed=1)
    proposer.observe(default, 0.0, cost=2.0)
    (second,) = proposer.propose(1, seed=0)
    assert second != default or proposer.propose(1, seed=1)[0] != default
    assert (proposer.observed, proposer.spent) == (1, 2.0)


@pytest.mark.parametrize("kind", PROPOSERS)
def test_a_proposer_resumes_exactly(kind):
    def play(proposer, rounds):
        trace = []
        for t in rounds:
            for settings in proposer.propose(2, seed=t):
                reward = math.nan if t == 2 else settings["alpha"] + 0.01 * settings["steps"]
                proposer.observe(settings, reward, cost=1 / 3)
                trace.append((settings, proposer.best()))
        return trace

    whole = kind(SPACE, price=0.1)
    trace = play(whole, range(8))
    first = kind(SPACE, price=0.1)
    begun = play(first, range(5))
    second = kind(json.loads(json.dumps(SPACE)), price=0.1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + play(second, range(5, 8)) == trace
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("kind", PROPOSERS)
def test_a_trial_that_diverged_is_as_bad_as_the_worst(kind):
    proposer = kind({"alpha": [0.1, 1.0, 10.0]})
    for alpha, reward in ((0.1, 0.02), (1.0, -0.05), (10.0, math.nan)):
        proposer.observe({"alpha": alpha}, reward)
    assert proposer.best() == {"alpha": 0.1}


@pytest.mark.parametrize("kind", PROPOSERS)
def test_a_price_makes_the_dear_choice_pay(kind):
    chosen = {}
    for price in (0.0, 0.01):
        proposer = kind({"steps": [5, 50]}, price=price)
        for steps in (5, 50) * 5:
            proposer.observe({"steps": steps}, reward=0.001 * steps, cost=steps)
        chosen[price] = proposer.best()["steps"]
    assert chosen == {0.0: 50, 0.01: 5}


def test_the_posterior_is_a_weighted_ridge_regression():
    bandit = ThompsonSampling({"a": [0, 1], "b": [0, 1]}, forgetting=0.5)
    seen = [((0, 0), 0.1), ((1, 0), 0.4), ((0, 1), -0.2), ((1, 1), 0.3)]
    for (a, b), reward in seen:
        bandit.observe({"a": a, "b": b}, reward)
    x = np.array([[1, 1 - a, a, 1 - b, b] for (a, b), _ in seen], dtype=float)
    weight, r = np.array([0.125, 0.25, 0.5, 1.0]), np.array([reward for _, reward in seen])
    mean, covariance, shape, rate = bandit._posterior()
    prior = np.diag([1e-3, 1, 1, 1, 1])
    assert covariance == pytest.approx(np.linalg.inv(prior + x.T @ (weight[:, None] * x)))
    assert mean == pytest.approx(covariance @ x.T @ (weight * r))
    assert shape == pytest.approx(1 + weight.sum() / 2)
    misfit = (weight * (r - x @ mean) ** 2).sum() + mean @ prior @ mean
    assert rate == pytest.approx(bandit.scale**2 + misfit / 2)


def test_draws_have_the_spread_of_the_posterior():
    bandit = ThompsonSampling({"a": [0, 1]})
    for a, reward in ((0, 0.1), (1, 0.2), (0, 0.12), (1, 0.25), (1, 0.15)):
        bandit.observe({"a": a}, reward)
    mean, covariance, shape, rate = bandit._posterior()
    draws = np.stack([bandit._draw(np.random.default_rng(n)) for n in range(20_000)])
    assert draws.mean(axis=0) == pytest.approx(bandit._x @ mean, abs=0.002)
    expected = rate / (shape - 1) * bandit._x @ covariance @ bandit._x.T
    assert np.cov(draws.T) == pytest.approx(expected, abs=6e-5)  # of 6e-4


def regret(kind, seed, budget, change, **options):
    """How far trials and the incumbent fall short of the best settings, on the mean of the budget.

    The reward is what each choice brings, drawn with a deviation of 0.02, and noise of 0.01; with
    ``change``, other choices are good from the middle on.
    """
    source = np.random.default_rng([seed, 1])
    effects = [
        {n: dict(enumerate(source.normal(size=len(c)) * 0.02)) for n, c in SPACE.items()}
        for _ in range(2)
    ]
    proposer, tried, incumbent = kind(SPACE, **options), [], []
    for t in range(budget):
        effect = effects[change and t >= budget // 2]
        top = sum(max(e.values()) for e in effect.values())

        def value(settings, effect=effect):
            return sum(effect[n][SPACE[n].index(v)] for n, v in settings.items())

        (settings,) = proposer.propose(1, seed)
        proposer.observe(settings, value(settings) + 0.01 * source.normal(), cost=1.0)
        tried.append(top - value(settings))
        incumbent.append(top - value(proposer.best()))
    return float(np.mean(tried)), float(np.mean(incumbent))


@pytest.mark.parametrize("change", [False, True])
def test_the_bandit_beats_random_search(change):
    runs = {
        kind: np.array([regret(kind, seed, 60, change) for seed in range(20)]) for kind in PROPOSERS
    }
    saved = runs[RandomSearch] - runs[ThompsonSampling]
    for name, column in zip(("trials", "incumbent"), saved.T, strict=True):
        found = interval(column)
        assert found["low"] > 0, (name, found)


def test_forgetting_is_worth_it_where_the_surface_changes():
    kept, forgot = (
        np.array([regret(ThompsonSampling, s, 60, True, forgetting=f)[1] for s in range(20)])
        for f in (1.0, 0.9)
    )
    assert interval(kept - forgot)["low"] > 0


def test_what_no_generation_could_plan_is_refused_before_the_first():
    with pytest.raises(UsageError, match=r"no phi .*: give optimisation\.pairs 0"):
        Optimisation(pairs=1).check(Training(Adam, alpha=0.1))
    Optimisation(pairs=0).check(Training(Adam, alpha=0.1))
    Optimisation(pairs=1).check(Training("text"))
    with pytest.raises(UsageError, match="the space names 'alpa'"):
        Optimisation(proposer=ThompsonSampling({"alpa": [0.1, 0.2]})).check(Training("text"))


def test_a_rule_whose_phi_changes_with_the_model_is_refused():
    roles, tensors = partial(Gains, per="role"), partial(Gains, per="tensor")
    adapt = ThompsonSampling({"adapt": [["head"], ["all"]]})
    with pytest.raises(UsageError, match="phi for each coordinate, and a new class brings new"):
        Optimisation(pairs=1).check(Training(MetaSGD, alpha=0.1))
    with pytest.raises(UsageError, match="phi for each tensor, and the space varies which"):
        Optimisation(pairs=1, proposer=adapt).check(Training(tensors, alpha=0.1))
    Optimisation(pairs=1).check(Training(tensors, alpha=0.1))
    Optimisation(pairs=1, proposer=adapt).check(Training(roles, alpha=0.1))


@pytest.mark.parametrize("pairs", [1, 3, 5])
@pytest.mark.parametrize("choices", [[5], [5, 10]])
def test_a_space_of_few_choices_fills_the_plan(pairs, choices):
    optimisation = Optimisation(pairs, proposer=ThompsonSampling({"steps": choices}))
    plan = optimisation.plan(Empty(), Training("text"), (0, 1))
    assert [trial["variant"] for trial in plan] == [None, *range(2 * pairs)]
    assert {trial["settings"]["steps"] for trial in plan} <= set(choices)


class Empty:
    """A journal in which nothing has been learned."""

    def state(self, name):
        return None


def test_a_lone_challenger_is_set_beside_the_champion(tmp_path):
    """Beside itself it would gain nothing, whatever it was."""
    optimisation = Optimisation(0, proposer=ThompsonSampling({"alpha": [10.0, 0.1]}))
    journal = Kept()
    for alpha, reward in ((10.0, -0.9), (0.1, -0.4), (10.0, None)):
        trial = {"settings": {"alpha": alpha}, "reward": reward, "steps": 5}
        journal.kept |= optimisation.learn(
            journal, None, Training("text"), None, [trial], 0, lambda: -0.5
        )
    assert optimisation.plan(journal, Training("text"), (0, 1))
    assert optimisation.proposer.best() == {"alpha": 0.1}


class Kept(Empty):
    """A journal that keeps what was learned."""

    def __init__(self):
        self.kept = {}

    def state(self, name):
        return self.kept.get(name)


def test_settings_that_no_training_could_take_are_refused():
    for space, said in (
        ({"alpha": ["abc"]}, "the space has 'abc' for alpha; give a number above 0"),
        ({"alpha": [-1]}, "-1 for alpha"),
        ({"steps": [2.5]}, "2.5 for steps; give a whole number"),
        ({"steps": [math.inf]}, "inf for steps"),
        ({"replay": [1.0]}, "1.0 for replay"),
        ({"adapt": ["head"]}, "'head' for adapt; give a list"),
    ):
        with pytest.raises(UsageError, match=said):
            Optimisation(0, proposer=RandomSearch(space)).check(Training("text"))
