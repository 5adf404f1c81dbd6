from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lightning_evolve.errors import UsageError
from lightning_evolve.sweeps.distributions import Distribution, parse

ENTRIES: dict[str, dict[str, Any]] = {
    "constant": {"value": "sgd"},
    "categorical": {"values": ["a", 2, True, 1, None, 0.5, [1, 2]]},
    "categorical_w_probabilities": {"values": ["a", "b", "c"], "probabilities": [0.2, 0.0, 0.8]},
    "int_uniform": {"min": -3, "max": 7},
    "uniform": {"min": -1.5, "max": 4.0},
    "q_uniform": {"distribution": "q_uniform", "min": 1, "max": 10, "q": 2},
    "q_uniform, real": {"distribution": "q_uniform", "min": 0.1, "max": 1, "q": 0.25},
    "log_uniform": {"distribution": "log_uniform", "min": -9.2, "max": 0.5},
    "log_uniform_values": {"distribution": "log_uniform_values", "min": 1e-4, "max": 10},
    "q_log_uniform": {"distribution": "q_log_uniform", "min": 0, "max": 6},
    "q_log_uniform_values": {"distribution": "q_log_uniform_values", "min": 3, "max": 900, "q": 5},
    "inv_log_uniform": {"distribution": "inv_log_uniform", "min": -1, "max": 5},
    "inv_log_uniform_values": {"distribution": "inv_log_uniform_values", "min": 0.01, "max": 3},
    "normal": {"distribution": "normal", "mu": 2, "sigma": 0.5},
    "q_normal": {"distribution": "q_normal", "sigma": 4},
    "log_normal": {"distribution": "log_normal", "mu": -1, "sigma": 2},
    "q_log_normal": {"distribution": "q_log_normal", "mu": 3, "q": 0.5},
    "beta": {"distribution": "beta", "a": 2, "b": 5},
    "q_beta": {"distribution": "q_beta", "a": 2, "b": 5, "q": 0.125},
}
QUANTILES = [0.013, 0.2101, 0.37, 0.4999, 0.63, 0.777, 0.9, 0.987]


@pytest.mark.parametrize("name", ENTRIES)
def test_values_at_quantiles_are_wandbs(name: str, wandb_sweeps: Any) -> None:
    entry = ENTRIES[name]
    theirs = wandb_sweeps.params.HyperParameter("x", entry)
    ours = parse("x", entry)
    assert ours.name == name.partition(",")[0]
    for quantile in QUANTILES:
        expected, found = theirs.ppf(quantile), ours.at(quantile)
        if isinstance(found, float):
            assert found == pytest.approx(float(expected), rel=1e-12)
        else:
            assert found == expected


def test_values_at_quantiles_by_hand() -> None:
    # One exact statement for each; ln 2 apart, the middle of [1, 4] on a logarithmic scale is 2.
    assert parse("x", {"min": 2.0, "max": 4.0}).at(0.25) == 2.5
    assert parse("x", {"min": 1, "max": 4}).at(0.3) == 2
    assert parse("x", {"distribution": "log_uniform_values", "min": 1, "max": 4}).at(
        0.5
    ) == pytest.approx(2)
    exponents = {"min": math.log(1), "max": math.log(4)}
    assert parse("x", {"distribution": "log_uniform", **exponents}).at(0.5) == pytest.approx(2)
    assert parse("x", {"distribution": "inv_log_uniform", **exponents}).at(0.0) == 0.25
    stepped = parse("x", {"distribution": "q_uniform", "min": 1, "max": 10, "q": 2})
    assert stepped.at(0.5) == 6
    assert isinstance(stepped.at(0.5), int)
    chosen = Distribution(
        "categorical_w_probabilities", {"values": ["a", "b", "c"], "probabilities": [0.2, 0, 0.8]}
    )
    assert [chosen.at(u) for u in (0, 0.19, 0.2, 1)] == ["a", "a", "c", "c"]


@pytest.mark.parametrize(
    ("entry", "law"),
    [
        ({"min": -1.5, "max": 4.0}, stats.uniform(-1.5, 5.5)),
        ({"distribution": "log_uniform", "min": -2, "max": 3}, None),
        ({"distribution": "normal", "mu": 2, "sigma": 3}, stats.norm(2, 3)),
        ({"distribution": "log_normal", "mu": 1, "sigma": 2}, stats.lognorm(2, scale=math.e)),
        ({"distribution": "beta", "a": 2, "b": 5}, stats.beta(2, 5)),
    ],
)
def test_draws_follow_the_law(entry: dict[str, Any], law: Any) -> None:
    distribution = parse("x", entry)
    rng = np.random.default_rng(0)
    draws = np.array([distribution.at(u) for u in rng.random(400)])
    if law is None:
        draws, law = np.log(draws), stats.uniform(-2, 5)
    assert stats.kstest(draws, law.cdf).pvalue > 0.01


@pytest.mark.parametrize("name", ENTRIES)
def test_a_value_leads_back_to_a_quantile_of_its_own(name: str) -> None:
    distribution = parse("x", ENTRIES[name])
    for quantile in QUANTILES:
        value = distribution.at(quantile)
        back = distribution.quantile(value)
        assert 0 <= back <= 1
        again = distribution.at(back)
        assert type(again) is type(value)
        assert again == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)


def test_the_ends_stay_within_the_bounds() -> None:
    for low in (1e-7, 1e-3, 0.03):
        distribution = parse("x", {"distribution": "log_uniform_values", "min": low, "max": 7.0})
        assert distribution.at(0) == low
        assert distribution.at(1) == 7.0
    dice = parse("x", {"min": 1, "max": 6})
    assert (dice.at(0), dice.at(1)) == (1, 6)


def test_choices_are_those_of_wandbs_grid(wandb_sweeps: Any) -> None:
    for entry in (
        {"values": ["a", "b"]},
        {"min": 2, "max": 6},
        {"distribution": "q_uniform", "min": 0.5, "max": 3.0, "q": 0.5},
        {"distribution": "q_uniform", "min": 1, "max": 10, "q": 2},
    ):
        config = {"method": "grid", "parameters": {"x": entry}}
        runs: list[Any] = []
        while (run := wandb_sweeps.next_run(config, runs)) is not None:
            runs.append(run)
        choices = parse("x", entry).choices()
        assert choices is not None
        assert list(choices) == [run.config["x"]["value"] for run in runs]


def test_what_a_plot_and_a_search_ask() -> None:
    known = {name: parse("x", entry) for name, entry in ENTRIES.items()}
    assert [n for n, d in known.items() if not d.varies] == ["constant"]
    assert [n for n, d in known.items() if not d.ordered] == [
        "constant",
        "categorical",
        "categorical_w_probabilities",
    ]
    assert not parse("x", {"values": [True, False]}).numeric
    assert parse("x", {"values": [1, 0.5]}).numeric
    assert known["log_uniform_values"].logarithmic
    assert not known["uniform"].logarithmic
    assert known["uniform"].choices() is None
    assert parse("x", {"values": [1, True]}).index(True) == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (0.1, "parameters.x is 0.1; write a mapping, such as {value: 0.1}"),
        ({}, "has no distribution; give it value, values, or min and max"),
        ({"min": 1}, "has no distribution"),
        ({"parameters": {"alpha": {"value": 1}}}, "flat names with dots, such as x.alpha"),
        ({"distribution": "log_unifrom", "min": 1, "max": 2}, "did you mean 'log_uniform'?"),
        ({"distribution": "uniform", "min": 1}, "uniform needs max"),
        ({"min": 1, "max": 2, "q": 1}, "int_uniform takes no 'q'; it takes min, max"),
        ({"min": 3, "max": 1}, "min 3 is above max 1"),
        ({"min": 3.0, "max": 3.0}, "min and max are both 3.0; write value: 3.0"),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, "min is 0; log_uniform_val"),
        ({"min": 0, "max": 1, "distribution": "q_log_uniform_values"}, "needs a bound above 0"),
        ({"min": 1, "max": 1e4, "distribution": "log_uniform"}, "use log_uniform_values"),
        ({"min": "1e-4", "max": 1.0}, "min is the text '1e-4'; write a number, such as 0.0001"),
        ({"min": "1e-7", "max": 1.0}, "min is the text '1e-7'; write a number, such as 1.0e-07"),
        ({"min": "low", "max": 1.0}, "min is 'low'; give a number"),
        ({"min": True, "max": 3}, "min is True; give a finite number"),
        ({"min": 0.5, "max": 3, "distribution": "int_uniform"}, "int_uniform takes whole numbers"),
        ({"min": 0.0, "max": math.inf}, "max is inf; give a finite number"),
        ({"distribution": "normal", "sigma": 0}, "sigma is 0; it must be above 0"),
        ({"values": []}, "values is []; list at least one value"),
        ({"values": "abc"}, "values is 'abc'; list at least one value"),
        ({"values": [1, 2, 1]}, "lists 1 twice"),
        ({"values": [1, math.nan]}, "values has nan; give finite numbers"),
        ({"values": [1, 2], "probabilities": [1]}, "has 2 values and 1 probabilities; give one"),
        ({"values": [1, 2], "probabilities": [0.5, 0.4]}, "sum to 0.9; they must sum to 1"),
        ({"values": [1, 2], "probabilities": [1.5, -0.5]}, "has -0.5; give none below 0"),
    ],
)
def test_an_entry_without_sense_is_refused_in_one_line(entry: object, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse("x", entry)
    assert message in str(refused.value)
    assert str(refused.value).startswith("parameters.x")
    assert "\n" not in str(refused.value)


def test_true_is_a_value_of_its_own() -> None:
    # 1 == True to Python, but not on a command line.
    assert parse("x", {"values": [1, True, "1"]}).choices() == [1, True, "1"]
