"""The numbers of the table: intervals, tuning, the floor, and rivals that get a fair chance."""

from __future__ import annotations

import gc
import json
import math
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from lightning_evolve.callbacks.comparison import Comparison
from lightning_evolve.data import Pixels
from lightning_evolve.errors import UsageError
from lightning_evolve.evaluation import interval, nearest_centroid, steps_to_target, tune
from lightning_evolve.evaluation.ordinary import _macro_f1, merged, train
from lightning_evolve.evaluation.rivals import first_group, name_of, tuned_rivals
from lightning_evolve.inner_loop import detached
from lightning_evolve.learners import CNN, Head
from lightning_evolve.meta_learners import Adam, AdamW
from lightning_evolve.modules import Classifier
from lightning_evolve.modules.building import build
from lightning_evolve.streams import BatchStream
from lightning_evolve.tasks import Batch, DataSpec, Task
from tests.modules.small import module, stream, trainer


def test_interval_is_students():
    got = interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2  # t of 3 degrees of freedom at 97.5%
    assert got["mean"] == 2.5
    assert got["high"] - 2.5 == pytest.approx(half, rel=1e-6)


def test_a_rule_that_diverges_has_no_mean_and_breaks_nothing(tmp_path):
    from lightning_evolve.callbacks.comparison import _bands
    from lightning_evolve.evaluation import Curves
    from lightning_evolve.evaluation.comparison import rows_of
    from lightning_evolve.files import write_json
    from lightning_evolve.reports.plot import plot_curves

    good = Curves((0, 1), np.array([[2.0, 1.0], [2.0, 1.1]]), np.ones((2, 2)), np.ones(2))
    bad = good._replace(loss=np.array([[2.0, np.nan], [2.0, 1.0]]))
    curves = {"adam": good, "sgd": bad}
    found = rows_of(curves, {"adam": {}, "sgd": {}})
    assert found[1]["loss"] == {"mean": None, "low": None, "high": None}
    assert found[1]["steps_to_target"]["mean"] is None
    write_json(tmp_path / "r.json", {"rows": found})
    plot_curves({name: _bands(curve) for name, curve in curves.items()}, tmp_path / "c.png")


def test_steps_to_target_never_is_none_and_the_bootstrap_is_paired():
    # Tasks differ by far more than methods do; only a paired bootstrap sees that 5 < 10 always.
    level = np.linspace(0, 50, 20)[:, None]
    adam = level + np.array([[3.0, 2.0, 1.0]])
    ours = level + np.array([[3.0, 1.0, 0.5]])
    slow = level + np.array([[3.0, 3.0, 3.0]])
    got = steps_to_target({"adam": adam, "evolved": ours, "slow": slow}, [0, 5, 10])
    assert got["adam"] == {"mean": 10.0, "low": 10.0, "high": 10.0}
    assert got["evolved"]["mean"] == 5.0
    assert got["slow"] == {"mean": None, "low": None, "high": None}


def test_tuning_grows_its_grid_until_the_best_rate_lies_inside():
    tried = []

    def loss(rate):
        tried.append(rate)
        return abs(math.log10(rate) - 1)

    best = tune(loss, centre=1e-2)
    assert best == pytest.approx(10)
    assert max(tried) > 10, "it looked beyond the best one"
    assert len(tried) == len(set(tried)) > 7


def test_a_rate_that_diverges_is_never_the_best():
    best = tune(lambda rate: math.nan if rate > 0.5 else 1 / rate, centre=1.0)
    assert best == pytest.approx(10**-0.5)


def test_a_coarse_grid_is_refused():
    with pytest.raises(UsageError, match="points is 3"):
        tune(lambda _: 0.0, centre=1.0, points=3)


def test_groups_find_the_ratio_that_one_rate_cannot():
    learner = Head(DataSpec(num_classes=2, shape=(3,)))
    theta = detached(dict(learner.named_parameters()))

    def loss(rule, rate):
        ratio = getattr(rule(theta), "ratios", [1.0])[0]
        return (math.log10(rate) + 3) ** 2 + (math.log10(rate * ratio) + 1) ** 2

    found = tuned_rivals(loss, learner, theta, 1e-2)
    assert first_group(learner, theta) == "hidden.*"
    groups = found["adam_groups"]
    assert loss(groups.rule, groups.alpha) < loss(Adam, found["adam"].alpha)
    assert groups.setting["first_rate"] == pytest.approx(1e-1, rel=0.01)
    assert groups.alpha == pytest.approx(1e-3, rel=0.01)


def test_unknown_rival_is_refused():
    with pytest.raises(UsageError, match="'lion' is none of"):
        Comparison(rivals=["lion"])


def test_nearest_centroid_by_hand():
    support = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.2], [0.1, 3.0]])
    query = np.array([[5.0, 1.0], [1.0, 4.0]])
    assert nearest_centroid(support, np.array([0, 1, 0, 1]), query).tolist() == [0, 1]


def rows(**options):
    defaults = dict(source="digits", classes=["3", "8"], encoder=Pixels(size=8), batch_size=8)
    return BatchStream(**{**defaults, **options})


def test_the_adamw_rival_is_classifier_with_torchs_adamw(tmp_path):
    """What the table calls AdamW is what a user of torch would have got, row for row."""
    data, rate, steps = rows(), 3e-3, 12
    factory = partial(CNN, channels=(3, 4))
    plain = Classifier(factory, partial(torch.optim.AdamW, lr=rate))
    trainer(tmp_path, max_steps=steps, limit_val_batches=0).fit(plain, datamodule=data)
    learner = build(factory, data.spec, 0).requires_grad_(False)
    theta = detached(dict(learner.named_parameters()))
    ours = train(
        learner,
        AdamW,
        theta,
        [data.training_task(i) for i in range(steps)],
        data.split("validation"),
        alpha=rate,
        measured=[steps],
    )
    for name, p in plain.learner.named_parameters():
        torch.testing.assert_close(ours.theta[name], p.detach(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(p.detach(), theta[name])


KEYS = {"mean", "low", "high"}


def check_schema(results):
    assert {"rows", "seed", "tasks", "steps", "config"} <= results.keys()
    for row in results["rows"]:
        assert all(row[key].keys() == KEYS for key in ("accuracy", "macro_f1", "loss"))
        assert row["steps_to_target"].keys() == KEYS
        assert 0 <= row["accuracy"]["mean"] <= 1
    return [row["method"] for row in results["rows"]]


ALL = ["evolved", "sgd", "adam", "adam_groups", "adamw", "muon", "floor"]


def test_the_table_on_held_out_tasks(tmp_path):
    t = trainer(tmp_path, max_steps=2, callbacks=[Comparison(tuning_tasks=2)])
    t.fit(module(), datamodule=stream())
    results = json.loads((tmp_path / "results.json").read_text())
    assert check_schema(results) == ALL
    assert results["tasks"] == 3
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    t.test(module(), datamodule=stream(), verbose=False)
    assert json.loads((tmp_path / "results.json").read_text()) == results, "never overwritten"
    assert (tmp_path / "results-2.json").exists()


@pytest.mark.parametrize("make", [module, Classifier])
def test_the_table_on_ordinary_data(tmp_path, make):
    evolving = make is module
    m = (
        module(theta="persistent", steps=1, alpha=3e-3)
        if evolving
        else Classifier(partial(CNN, channels=(3, 4)), partial(torch.optim.AdamW, lr=3e-3))
    )
    # All rivals for one of the two: they do not know beside what they stand.
    table = Comparison() if evolving else Comparison(rivals=["adam"])
    t = trainer(tmp_path, max_steps=16, val_check_interval=8, callbacks=[table])
    t.fit(m, datamodule=rows())
    results = json.loads((tmp_path / "results.json").read_text())
    methods = ["evolved", *ALL[1:]] if evolving else ["classifier", "adam", "floor"]
    assert check_schema(results) == methods
    by = {row["method"]: row for row in results["rows"]}
    assert by["adam"]["steps_to_target"]["mean"] in (8, 16)
    assert by["floor"]["accuracy"]["mean"] > 0.8
    assert by["adam"]["accuracy"]["mean"] > 0.6


def test_no_rival_is_trained_twice_and_few_thetas_are_kept(tmp_path, monkeypatch):
    alive, most, calls = weakref.WeakSet(), [], []

    class Kept:
        """A run that can be seen to be forgotten, which a tuple can not."""

        def __init__(self, run):
            self.curve, self.theta, self.best_loss = run.curve, run.theta, run.best_loss

    def counted(learner, rule, *given, **options):
        run = Kept(train(learner, rule, *given, **options))
        calls.append((name_of(rule), getattr(rule, "keywords", None), options["alpha"]))
        alive.add(run)
        gc.collect()
        most.append(len(alive))
        return run

    monkeypatch.setattr("lightning_evolve.evaluation.ordinary.train", counted)
    m = module(theta="persistent", steps=1, alpha=3e-3)
    table = Comparison(rivals=["sgd", "adam", "adam_groups"])
    t = trainer(tmp_path, max_steps=4, val_check_interval=2, callbacks=[table])
    t.fit(m, datamodule=rows())
    assert len({str(call) for call in calls}) == len(calls) > 15
    assert max(most) <= 3 + 2, "the best of each method, and the one at hand"


def test_a_test_compares_with_the_whole_run(tmp_path, monkeypatch):
    """The rivals of a later test take as many steps as the run did, not those of the test."""
    monkeypatch.setattr("lightning_evolve.callbacks.comparison.plot_curves", lambda *_: None)
    m = module(theta="persistent", steps=1, alpha=3e-3)
    options = {"max_steps": 6, "val_check_interval": 3}
    first = trainer(tmp_path, callbacks=[Comparison(rivals=["adam"])], **options)
    first.fit(m, datamodule=rows())
    first.save_checkpoint(tmp_path / "c.ckpt")
    fresh = module(theta="persistent", steps=1, alpha=3e-3)
    second = trainer(tmp_path, callbacks=[Comparison(rivals=["adam"])], **options)
    second.test(fresh, datamodule=rows(), ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    fit, test = (json.loads((tmp_path / f"results{n}.json").read_text()) for n in ("", "-2"))
    assert fit == test


def test_rivals_begin_where_we_did_not_where_we_ended(tmp_path):
    """With a learned initial theta the rivals still start from the one that the seed gives."""
    from lightning_evolve.callbacks.comparison import _initial
    from lightning_evolve.estimators import Unrolled

    m = module(learn_init=True, estimator=Unrolled(), beta=0.05)
    trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(m, datamodule=stream())
    fresh = build(m.learner_factory, m.spec, m.seed)
    for name, p in _initial(m).items():
        assert torch.equal(p, dict(fresh.named_parameters())[name])
        assert not torch.equal(p, m.theta()[name])


def test_few_shot_tasks_are_refused_by_the_plain_classifier(tmp_path):
    with pytest.raises(UsageError, match="few-shot tasks; use BatchStream"):
        trainer(tmp_path, max_steps=2, val_check_interval=1).fit(
            Classifier(partial(CNN, channels=(3, 4))), datamodule=stream()
        )


def test_a_step_of_a_rival_has_all_rows_of_an_outer_step():
    def batch(*rows):
        rows = torch.tensor(rows)
        return Batch({"features": rows[:, None].float()}, torch.zeros_like(rows), rows)

    pairs = [Task((batch(0, 1),), batch(2)), Task((batch(3),), batch(4, 5))]
    one = merged(pairs)
    assert [b.rows.tolist() for b in (*one.support, one.query)] == [[0, 1], [2], [3], [4, 5]]


def test_macro_f1_is_scikit_learns_and_its_interval_covers():
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(0)
    truth = generator.integers(5, size=400)
    predicted = np.where(generator.random(400) < 0.7, truth, generator.integers(7, size=400))
    found = _macro_f1(truth, predicted)
    assert found["mean"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    draws = generator.integers(400, size=(1000, 400))
    by_rows = [f1_score(truth[d], predicted[d], average="macro") for d in draws]
    low, high = np.quantile(by_rows, [0.025, 0.975])
    assert found["low"] == pytest.approx(low, abs=0.01)
    assert found["high"] == pytest.approx(high, abs=0.01)
    assert _macro_f1(truth[:1], truth[:1]) == {"mean": 1.0, "low": 1.0, "high": 1.0}
