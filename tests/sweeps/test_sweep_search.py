from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_evolve.sweeps.distributions import parse
from lightning_evolve.sweeps.search import Bayes, Grid, Random, Search, search_for
from lightning_evolve.sweeps.specification import load
from lightning_evolve.sweeps.trials import Trial

RATE = {"distribution": "log_uniform_values", "min": 1e-4, "max": 10.0}
RATES = {"alpha": parse("alpha", RATE), "beta": parse("beta", RATE)}
MIXED = {
    "rate": parse("rate", RATE),
    "rule": parse("rule", {"values": ["sgd", "linear", True, 1]}),
    "layers": parse("layers", {"min": 1, "max": 4}),
    "mu": parse("mu", {"distribution": "normal"}),
    "fixed": parse("fixed", {"value": "x"}),
}


needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="needs Optuna")


def bowl(parameters: dict[str, Any]) -> float:
    alpha, beta = math.log10(parameters["alpha"]), math.log10(parameters["beta"])
    return (alpha + 2.3) ** 2 + (beta - 0.2) ** 2


def sweep(search: Search, loss: Callable[[dict[str, Any]], float], count: int) -> list[Trial]:
    trials: list[Trial] = []
    for number in range(count):
        parameters = search.propose(number, trials)
        assert parameters is not None
        trials.append(Trial(number, parameters, "finished", loss(parameters)))
    return trials


def test_a_grid_is_every_combination_once() -> None:
    grid = Grid(
        {k: parse(k, {"values": v}) for k, v in {"b": [1, 2], "a": ["x", "y", "z"]}.items()}
    )
    proposals = (grid.propose(number, []) for number in itertools.count())
    found = list(itertools.takewhile(lambda p: p is not None, proposals))
    assert [tuple(p.values()) for p in found if p] == list(itertools.product([1, 2], "xyz"))
    assert list(found[0] or ()) == ["b", "a"]
    assert grid.propose(6, []) is None
    assert Grid({"a": parse("a", {"value": 1})}).propose(0, []) == {"a": 1}


def test_a_grid_is_that_of_wandb(wandb_sweeps: Any) -> None:
    parameters = {
        "a": {"values": ["x", True, 3]},
        "b": {"min": 1, "max": 4},
        "c": {"value": 0},
        "d": {"distribution": "q_uniform", "min": 0.5, "max": 2.0, "q": 0.5},
    }
    config = {"method": "grid", "parameters": parameters}
    runs = wandb_sweeps.next_runs(config, [], n=100)
    theirs = [{k: v["value"] for k, v in run.config.items()} for run in runs if run is not None]
    grid = Grid({name: parse(name, entry) for name, entry in parameters.items()})
    ours = [grid.propose(number, []) for number in range(len(theirs))]
    assert sorted(map(repr, ours)) == sorted(repr({n: p[n] for n in parameters}) for p in theirs)
    assert grid.propose(len(theirs), []) is None


def test_random_draws_are_a_function_of_seed_and_number() -> None:
    search = Random(MIXED, seed=3)
    draws = [search.propose(number, []) for number in range(20)]
    assert list(draws[0]) == list(MIXED)
    assert [Random(MIXED, 3).propose(n, [Trial(0, draws[0])]) for n in range(20)] == draws
    assert len({repr(draw) for draw in draws}) == 20
    assert Random(MIXED, seed=4).propose(0, []) != draws[0]
    # Parameters are drawn apart from each other.
    pairs = [Random(RATES, 0).propose(number, []) for number in range(5)]
    assert all(pair["alpha"] != pair["beta"] for pair in pairs)


@pytest.mark.parametrize(("method", "kind"), [("grid", Grid), ("random", Random), ("bayes", Bayes)])
def test_a_file_names_its_search(method: str, kind: type, tmp_path: Path) -> None:
    if method == "bayes":
        pytest.importorskip("optuna")
    path = tmp_path / "s.yaml"
    content = {
        "method": method,
        "metric": {"name": "val/reward", "goal": "maximize"},
        "program": "p",
        "parameters": {"a": {"values": [1, 2]}},
    }
    path.write_text(yaml.safe_dump(content))
    search = search_for(load(path), seed=7)
    assert isinstance(search, kind)
    if isinstance(search, Bayes):
        assert search.maximize
        assert search.seed == 7


@needs_optuna
def test_the_same_trials_give_the_same_proposal() -> None:
    trials = sweep(Random(RATES, 0), bowl, 12)
    trials.append(Trial(12, {"alpha": 0.1, "beta": 0.2}))
    first, again = (Bayes(RATES, False, 0).propose(13, trials) for _ in range(2))
    assert first == again
    # Not because the trials were not looked at, nor because the seed was not.
    flipped = [Trial(t.number, t.parameters, t.state, -(t.objective or 0)) for t in trials[:12]]
    assert Bayes(RATES, False, 0).propose(13, flipped) != first
    assert Bayes(RATES, False, 0).propose(0, []) != Bayes(RATES, False, 1).propose(0, [])


@needs_optuna
def test_a_goal_to_maximize_turns_the_search_round() -> None:
    trials = sweep(Random(RATES, 0), bowl, 12)
    low = Bayes(RATES, False, 0).propose(12, trials)
    high = Bayes(RATES, True, 0).propose(12, trials)
    assert bowl(low) < 1 < bowl(high)


@needs_optuna
def test_what_runs_is_not_proposed_again() -> None:
    trials = sweep(Random(RATES, 0), bowl, 15)
    alone = Bayes(RATES, False, 0).propose(15, trials)
    trials.append(Trial(15, alone))

    def distance(parameters: dict[str, Any]) -> float:
        return max(abs(math.log(parameters[n] / alone[n])) for n in RATES)

    # The same number, hence the same seed: only the pending trial differs.
    beside = Bayes(RATES, False, 0).propose(15, trials)
    assert distance(beside) > 0.1
    # Pending is not the same as bad, which would be kept away from further.
    trials[15].state = "failed"
    assert Bayes(RATES, False, 0).propose(15, trials) != beside
    assert distance(Bayes(RATES, False, 0).propose(15, trials[:15])) == 0


@needs_optuna
def test_failures_are_kept_away_from() -> None:
    # Whatever has a rate above 0.01 diverges; below, larger is better, up to the edge.
    def loss(parameters: dict[str, Any]) -> float | None:
        rate = parameters["alpha"]
        return None if rate > 0.01 else -math.log10(rate)

    space = {"alpha": RATES["alpha"]}
    trials = [
        Trial(t.number, t.parameters, "failed" if t.number % 2 else "finished", loss(t.parameters))
        for t in sweep(Random(space, 1), lambda p: 0.0, 14)
    ]
    lost = [t for t in trials if t.objective is None]
    assert 4 <= len(lost) <= 10
    proposed = []
    for number in range(14, 20):
        parameters = Bayes(space, False, 0).propose(number, trials)
        proposed.append(parameters["alpha"])
        trials.append(Trial(number, parameters, "finished", loss(parameters)))
    assert sum(rate <= 0.02 for rate in proposed) >= 4
    # It goes on where nothing at all has succeeded.
    assert Bayes(space, False, 0).propose(14, lost).keys() == {"alpha"}


@needs_optuna
def test_values_come_back_as_they_went() -> None:
    search = Bayes(MIXED, False, 0)
    trials = sweep(search, lambda p: p["mu"] ** 2 + p["layers"] + (p["rule"] is True), 12)
    rules = {repr(trial.parameters["rule"]) for trial in trials}
    assert rules <= {"'sgd'", "'linear'", "True", "1"}
    assert len(rules) > 2
    for trial in trials:
        assert list(trial.parameters) == list(MIXED)
        assert trial.parameters["fixed"] == "x"
        assert type(trial.parameters["layers"]) is int
        assert math.isfinite(trial.parameters["mu"])


@needs_optuna
def test_a_distribution_without_an_end_is_searched_to_a_finite_one() -> None:
    for maximize in (False, True):
        search = Bayes({"mu": parse("mu", {"distribution": "normal"})}, maximize, 0)
        found = [trial.parameters["mu"] for trial in sweep(search, lambda p: p["mu"], 14)]
        assert max(abs(mu) for mu in found) == pytest.approx(3.0902, abs=1e-3)


@needs_optuna
@pytest.mark.slow
def test_it_finds_a_better_minimum_than_random_draws() -> None:
    for seed in range(3):
        ours = min(t.objective or 0 for t in sweep(Bayes(RATES, False, seed), bowl, 20))
        random = min(t.objective or 0 for t in sweep(Random(RATES, seed), bowl, 20))
        assert ours < 0.1 * random


@needs_optuna
def test_a_killed_sweep_goes_on_as_if_it_had_not_been() -> None:
    whole = sweep(Bayes(RATES, False, 5), bowl, 12)
    assert Bayes(RATES, False, 5).propose(11, whole[:11]) == whole[11].parameters
