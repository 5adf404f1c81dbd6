"""Training: a challenger grown from a model, against the inner loop it is made of."""

from __future__ import annotations

import itertools
import time
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_evolve.data.encoders import LatentWords
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.pretrained import Pretrained
from lightning_evolve.evolution.training import DivergedError, Drawn, Examples, Training
from lightning_evolve.inner_loop import Adapted, detached, inner_steps
from lightning_evolve.learners import Head
from lightning_evolve.meta_learners import SGD
from lightning_evolve.modules.building import adapting
from lightning_evolve.tasks import Task
from tests.evolution.loops import BEFORE, texts

ROWS = texts(60, seed=1)


@pytest.fixture(scope="module")
def model():
    pretrained = Pretrained(LatentWords(24), partial(Head, hidden_size=8))
    return pretrained.model([text for text, _ in ROWS], sorted(BEFORE), 0)


@pytest.fixture(scope="module")
def examples(model):
    labels = torch.tensor([model.classes.index(label) for _, label in ROWS])
    inputs = model.encode([text for text, _ in ROWS])
    return Examples(inputs, labels, torch.ones(len(ROWS), dtype=torch.float64))


def numbered(first, count, weights=None):
    """Rows that tell their number as label."""
    labels = torch.arange(first, first + count)
    given = torch.ones(count) if weights is None else torch.tensor(weights)
    return Examples({"features": labels[:, None].float()}, labels, given)


def parameters(model):
    return model.learner.state_dict()


@pytest.mark.parametrize("rule", ["text", SGD])
def test_grows_by_the_inner_loop(model, examples, rule):
    training = Training(rule, alpha=0.1, steps=5, batch_size=8, replay=0.25)
    grown, steps = training.grow(model, examples, examples, seed=(3, 4))
    g_phi, theta = training.rule(model, ["all"]), detached(adapting(model.learner, ["all"]))
    batches = Drawn(examples, examples, 8, 0.25, 5, (3, 4))
    *_, last = inner_steps(
        model.learner,
        g_phi,
        Adapted(theta, g_phi.init(theta)),
        Task(batches, batches[0]),
        alpha=0.1,
        steps=range(5),
    )
    assert steps == 5
    assert all(torch.equal(parameters(grown)[name], value) for name, value in last.theta.items())


def test_plain_gradient_descent_by_hand(model, examples):
    training = Training(SGD, alpha=0.5, steps=3, batch_size=6)
    grown, _ = training.grow(model, examples, seed=(0, 1))
    w = {name: p.clone().requires_grad_() for name, p in parameters(model).items()}
    for batch in Drawn(examples, None, 6, 0.5, 3, (0, 1)):
        out = torch.func.functional_call(model.learner, w, (), batch.inputs)
        slopes = torch.autograd.grad(cross_entropy(out, batch.labels), list(w.values()))
        w = {
            n: (p - 0.5 * g).detach().requires_grad_()
            for (n, p), g in zip(w.items(), slopes, strict=True)
        }
    for name, value in w.items():
        torch.testing.assert_close(parameters(grown)[name], value.detach())


def test_the_model_that_it_grows_from_stays_as_it_is(model, examples):
    before = {name: value.clone() for name, value in parameters(model).items()}
    grown, _ = Training(steps=3).grow(model, examples)
    assert all(torch.equal(parameters(model)[name], value) for name, value in before.items())
    assert not torch.equal(parameters(grown)["head.weight"], before["head.weight"])


def test_only_what_adapts_moves(model, examples):
    grown, _ = Training(steps=3).grow(model, examples, settings={"adapt": ["head"]})
    changed = {n for n, p in parameters(grown).items() if not torch.equal(p, parameters(model)[n])}
    assert changed
    assert all(name.startswith("head.") for name in changed)


@pytest.mark.parametrize(("replay", "old"), [(0.0, 0), (0.25, 8), (0.5, 16), (0.99, 32)])
def test_the_share_of_old_rows_is_exact(replay, old):
    for batch in Drawn(numbered(0, 50), numbered(1000, 50), 32, replay, 20, (0, 0)):
        assert len(batch.labels) == 32
        assert int((batch.labels >= 1000).sum()) == old
    for none in (None, numbered(0, 0)):
        assert len(Drawn(numbered(0, 50), none, 32, replay, 1, (0, 0))[0].labels) == 32


def test_rows_are_drawn_by_weight():
    drawn = Drawn(numbered(0, 3, [1.0, 3.0, 1e-12]), None, 100, 0.0, 100, (0, 0))
    counts = torch.cat([batch.labels for batch in drawn]).bincount(minlength=3) / 10_000
    torch.testing.assert_close(counts, torch.tensor([0.25, 0.75, 0.0]), atol=0.02, rtol=0)


def test_a_batch_is_a_function_of_seed_and_number():
    one, same, other = (Drawn(numbered(0, 50), None, 8, 0, 9, (0, s)) for s in (1, 1, 2))
    assert [one[k].labels.tolist() for k in (7, 2)] == [same[k].labels.tolist() for k in (7, 2)]
    assert one[0].labels.tolist() != one[1].labels.tolist()
    assert one[0].labels.tolist() != other[0].labels.tolist()


def test_stops_after_its_seconds(model, examples, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    _, steps = Training(steps=1000, seconds=10.5).grow(model, examples)
    assert steps == 11


def test_divergence_is_told(model, examples):
    with pytest.raises(DivergedError, match=r"diverged within 4 steps at alpha 1e\+38: give"):
        Training(SGD, alpha=1e38, steps=4).grow(model, examples)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"first_steps": 0}, "first_steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"replay": 1.0}, "replay is 1.0: give a share"),
        ({"replay": float("nan")}, "replay is nan"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"alpha": -0.1}, "alpha is -0.1: give"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"rule": SGD}, "alpha is None"),
        ({"rule": "no such rule"}, "no such rule"),
    ],
)
def test_numbers_out_of_range(given, said):
    with pytest.raises(UsageError, match=said) as told:
        Training(**given)
    assert "\n" not in str(told.value)
