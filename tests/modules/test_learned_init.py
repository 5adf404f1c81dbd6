"""Learned initial values, of what adapts (MAML) and of what does not (ANIL)."""

from __future__ import annotations

import json
from functools import partial

import lightning as L
import pytest
import torch

from lightning_evolve.callbacks.comparison import Comparison
from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import (
    Episode,
    EvolutionStrategies,
    FirstOrder,
    Reptile,
    Unrolled,
    first_order,
    unrolled,
)
from lightning_evolve.estimators.perturbation import play
from lightning_evolve.inner_loop import Adapted, detached, inner_steps, logits
from lightning_evolve.learners import CNN, Head
from lightning_evolve.meta_learners import SGD, Gains
from lightning_evolve.modules.building import build
from lightning_evolve.rewards import NegativeLoss
from lightning_evolve.tasks import Batch, DataSpec, Task
from tests.modules.small import module, stream, trainer

ANIL = dict(learn_init=["all"], adapt=["head"], meta_learner=SGD, estimator=Unrolled())


def anil_episode(steps=3, measured=(2, 3)):
    torch.manual_seed(0)
    learner = Head(DataSpec(num_classes=3, shape=(5,)), hidden_size=4).double()

    def batch(rows):
        x = {"features": torch.randn(rows, 5, dtype=torch.float64)}
        return Batch(x, torch.arange(rows) % 3, torch.arange(rows))

    theta = {n: p for n, p in learner.named_parameters() if n.startswith("head")}
    rule = Gains(detached(theta), horizon=3, eps=1e-2).double()
    return Episode(
        learner=learner,
        meta_learner=rule,
        start=Adapted(theta, rule.init(detached(theta))),
        task=Task((batch(6),), batch(9)),
        alpha=0.1,
        steps=steps,
        reward=NegativeLoss(),
        measured=measured,
    )


def reward(episode, steps=None):
    total = 0.0
    start = Adapted(detached(episode.start.theta), episode.start.state)
    walk = inner_steps(
        episode.learner,
        episode.meta_learner,
        start,
        episode.task,
        alpha=episode.alpha,
        steps=range(episode.steps),
    )
    for k, adapted in enumerate(walk, start=1):
        if k in episode.measured:
            out = logits(episode.learner, adapted.theta, episode.task.query)
            total += float(episode.reward(out, episode.task.query.labels)) / len(episode.measured)
    return total


@pytest.mark.parametrize("options", [{}, {"truncation": 2}, {"checkpoint": 1}])
def test_what_does_not_adapt_gets_its_derivative(options):
    episode = anil_episode()
    estimate = unrolled(episode, **options)
    assert set(estimate.theta) == {"hidden.weight", "hidden.bias", "head.weight", "head.bias"}
    torch.manual_seed(1)
    weight = episode.learner.hidden.weight
    direction = torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * 1e-6)
            values.append(reward(episode))
            weight.sub_(direction, alpha=sign * 1e-6)
    difference = (values[0] - values[1]) / 2e-6
    along = float((estimate.theta["hidden.weight"] * direction).sum())
    # A truncated gradient is another one: the window before the first reward is cut off.
    exact = "truncation" not in options
    assert (along == pytest.approx(difference, rel=1e-6)) is exact


def test_first_order_leaves_out_how_the_gradient_depends_on_it():
    """FO-ANIL: the derivative of the reward with the adapted head as a constant."""
    episode = anil_episode(measured=(3,))
    estimate = first_order(episode)
    head = detached(estimate.adapted.theta)
    out = logits(episode.learner, head, episode.task.query)
    score = episode.reward(out, episode.task.query.labels)
    weight = episode.learner.hidden.weight
    (want,) = torch.autograd.grad(score, weight)
    torch.testing.assert_close(estimate.theta["hidden.weight"], want)
    exact = unrolled(episode).theta["hidden.weight"]
    assert not torch.allclose(exact, want, rtol=1e-3)


def moved(m, tmp_path, **options):
    data = stream()
    data.setup()
    m.build(data.spec)
    before = {n: p.detach().clone() for n, p in m.learner.named_parameters()}
    trainer(tmp_path, max_steps=2, **options).fit(m, datamodule=data)
    return {n for n, p in m.learner.named_parameters() if not torch.equal(p.detach(), before[n])}


@pytest.mark.parametrize("estimator", [Unrolled(), FirstOrder()])
def test_anil_learns_everything_and_adapts_the_head(tmp_path, estimator):
    m = module(**{**ANIL, "estimator": estimator})
    everything = {
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "head") for kind in ("weight", "bias")
    }
    assert moved(m, tmp_path) == everything
    assert set(m.theta()) == {"head.weight", "head.bias"}


def test_a_list_names_what_is_learned_beside_what_adapts(tmp_path):
    m = module(**{**ANIL, "learn_init": ["conv2.*"]})
    assert moved(m, tmp_path) == {"conv2.weight", "conv2.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("estimator", [Unrolled(), FirstOrder(), Reptile()])
def test_a_list_leaves_out_what_keeps_its_initial_value(tmp_path, estimator):
    m = module(meta_learner=SGD, estimator=estimator, learn_init=["!head"])
    want = {f"{layer}.{kind}" for layer in ("conv1", "conv2") for kind in ("weight", "bias")}
    assert moved(m, tmp_path) == want
    assert {"head.weight", "head.bias"} < set(m.theta()), "it adapts all the same"


def test_true_learns_what_adapts_alone(tmp_path):
    m = module(**{**ANIL, "learn_init": True})
    assert moved(m, tmp_path) == {"head.weight", "head.bias"}


def test_rivals_begin_with_the_body_that_the_run_began_with(tmp_path):
    m = module(**ANIL, beta=0.05)
    only = Comparison(rivals=["sgd"], tuning_tasks=2)
    trainer(tmp_path, max_steps=30, limit_val_batches=0, callbacks=[only]).fit(
        m, datamodule=stream()
    )
    found = json.loads((tmp_path / "results.json").read_text())
    sgd = next(row for row in found["rows"] if row["method"] == "sgd")
    # By hand: the same rate from the theta of the seed, and from the body that was learned.
    from lightning_evolve.evaluation.curves import adaptation_curves

    data = stream()
    data.setup()
    tasks = data.tasks("test", 3)
    losses = {}
    for name, learner in {
        "fresh": build(partial(CNN, channels=(3, 4)), m.spec, 0),
        "ours": m.learner,
    }.items():
        fresh = build(partial(CNN, channels=(3, 4)), m.spec, 0)
        theta = {n: p.detach() for n, p in fresh.named_parameters() if n.startswith("head")}
        learner.requires_grad_(False)
        rate = sgd["setting"]["rate"]
        got = adaptation_curves(
            learner, SGD(theta), theta, tasks, alpha=rate, steps=2, measured=(2,)
        )
        losses[name] = float(got.loss[:, -1].mean())
    assert sgd["loss"]["mean"] == pytest.approx(losses["fresh"], rel=1e-6)
    assert sgd["loss"]["mean"] != pytest.approx(losses["ours"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learn_init": ["cnov.*"]}, "learn_init: 'cnov"),
        ({"estimator": Reptile()}, "Reptile learns only parameters that adapt"),
    ],
)
def test_what_cannot_be_learned_is_refused(options, says):
    data = stream()
    data.setup()
    with pytest.raises(UsageError, match=says):
        module(**{**ANIL, **options}).build(data.spec)


def test_evolution_strategies_cannot_learn_a_list_either():
    with pytest.raises(UsageError, match="initial theta"):
        module(**{**ANIL, "estimator": EvolutionStrategies()})


def test_annealed_measurements_end_as_the_last_one_alone():
    episode = anil_episode(measured=(1, 2, 3))
    for early, weights in (
        (1.0, (1 / 3, 1 / 3, 1 / 3)),
        (0.5, (1 / 6, 1 / 6, 2 / 3)),
        (0.0, (0, 0, 1)),
    ):
        weighed = episode._replace(early=early)
        alone = [unrolled(episode._replace(measured=(k,), steps=k)) for k in episode.measured]
        for estimate in (unrolled(weighed), unrolled(weighed, checkpoint=1)):
            want = sum(w * float(e.reward) for w, e in zip(weights, alone, strict=True))
            assert float(estimate.reward) == pytest.approx(want, rel=1e-12)
            for name in estimate.theta:
                want = sum(w * e.theta[name] for w, e in zip(weights, alone, strict=True))
                torch.testing.assert_close(estimate.theta[name], want)
        assert float(play(weighed)[0]) == pytest.approx(float(unrolled(weighed).reward), rel=1e-12)


def test_measurements_are_annealed_over_outer_steps(tmp_path):
    m = module(measurements=2, anneal=4)
    early = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            early.append(pl_module.episode(batch[0]).early)

    trainer(tmp_path, max_steps=6, callbacks=[Look()]).fit(m, datamodule=stream())
    assert early == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    # Held-out tasks are scored by what it ends as, so that the best checkpoint means one thing.
    task = m.trainer.datamodule.tasks("validation", 1)[0]
    out, score = m.adapted_logits(task)
    assert float(score) == pytest.approx(float(m.reward(out, task.query.labels)))
