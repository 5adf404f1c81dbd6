"""Persistent evolution strategies: unbiased where truncated ones are not."""

from __future__ import annotations

import sys

import pytest
import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import PersistentES, persistent_es, unrolled
from lightning_evolve.estimators.memory import plain, restored
from lightning_evolve.noise import generator
from lightning_evolve.rewards import Accuracy, NegativeLoss
from tests.mathematics.test_meta_gradients import RULES, make_episode

STEPS, WINDOW = 6, 2


def flat(gradients):
    return torch.cat([g.reshape(-1) for g in gradients.values()])


def played(episode, *, forgets=False, **options):
    """The estimates of an episode's windows, and what was remembered between them."""
    estimates, memories = [], []
    memory = None
    for _ in range(episode.steps // WINDOW):
        estimate = persistent_es(episode._replace(memory=memory), window=WINDOW, **options)
        memory = estimate.memory
        if memory and forgets:
            zeros = tuple({n: 0 * t for n, t in drift.items()} for drift in memory.drift)
            memory = memory._replace(drift=zeros)
        estimates.append(estimate)
        memories.append(memory)
    return estimates, memories


def draws(episode, count, **options):
    """Estimates of the episode's gradient from independent noise, one a row."""
    rows = []
    for index in range(count):
        task = episode.task._replace(index=index)
        estimates, _ = played(episode._replace(task=task), sigma=1e-2, **options)
        rows.append(torch.stack([flat(e.phi) for e in estimates]).mean(dim=0))
    return torch.stack(rows)


def episode_of(rule="gains"):
    return make_episode("head", RULES[rule], steps=STEPS, measurements=(2, 4, 6))


def test_the_mean_over_an_episode_is_unbiased_and_that_of_truncated_es_is_not():
    episode = episode_of()
    exact = flat(unrolled(episode).phi)

    def standard_errors_off(got):
        error = got.std(dim=0) / len(got) ** 0.5
        return float(((got.mean(dim=0) - exact).abs() / error).max())

    assert standard_errors_off(draws(episode, 300)) < 4
    assert standard_errors_off(draws(episode, 300, forgets=True)) > 8


def test_particles_go_on_from_where_they_are_until_the_horizon():
    episode = episode_of()._replace(reward=Accuracy())
    estimates, memories = played(episode, pairs=2)
    assert [m and m.step for m in memories] == [2, 4, None]
    assert [e.adapted.state.step for e in estimates] == [2, 4, 6]
    for memory in memories[:-1]:
        thetas = [p.theta["head.weight"] for p in memory.particles]
        assert len(thetas) == 4
        assert not any(torch.equal(a, b) for a in thetas for b in thetas if a is not b)
    first, second = (m.drift[0]["log_gains"] for m in memories[:-1])
    assert not torch.equal(first, second), "a new perturbation in each window"
    again, _ = played(episode, pairs=2)
    for one, other in zip(estimates, again, strict=True):
        assert torch.equal(flat(one.phi), flat(other.phi))


def test_phi_stays_as_it_was():
    episode = episode_of("mlp")
    before = {n: p.detach().clone() for n, p in episode.meta_learner.phi().items()}
    played(episode)
    for name, p in episode.meta_learner.phi().items():
        assert torch.equal(p, before[name])


def test_a_memory_survives_a_checkpoint(tmp_path):
    episode = episode_of()
    _, (memory, *_) = played(episode)
    torch.save(plain(memory), tmp_path / "m.pt")
    again = restored(torch.load(tmp_path / "m.pt", weights_only=True))
    one, other = (
        persistent_es(episode._replace(task=m.task, memory=m), window=WINDOW)
        for m in (memory, again)
    )
    assert torch.equal(flat(one.phi), flat(other.phi))
    assert again.task.name == memory.task.name
    assert again.task.index == memory.task.index


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0; give at least 1"),
        ({"window": 2, "sigma": 0.0}, "sigma is 0.0; give a positive"),
        ({"window": 2, "pairs": 0}, "pairs is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        PersistentES(**options)


def test_what_does_not_fit_is_refused():
    estimator = PersistentES(window=4)
    fits = dict(reward=NegativeLoss(), learn_init=False)
    with pytest.raises(UsageError, match=r"window is 4 .* 6 inner steps; give one of 1, 2, 3, 6"):
        estimator.check(steps=6, measured=(6,), **fits)
    with pytest.raises(UsageError, match=r"measurements is 1 .* 2 windows.* give measurements: 2"):
        estimator.check(steps=8, measured=(8,), **fits)
    with pytest.raises(UsageError, match="initial theta"):
        estimator.check(steps=8, measured=(4, 8), reward=NegativeLoss(), learn_init=True)
    estimator.check(steps=8, measured=(4, 8), **fits)


def test_the_noise_is_not_what_the_initial_theta_is_drawn_from(monkeypatch):
    """`EvolvingRule` draws each episode's theta from the seed, the index and 1."""
    episode, asked = episode_of()._replace(measured=tuple(range(1, STEPS + 1))), []
    monkeypatch.setattr(
        sys.modules["lightning_evolve.estimators.persistent_es"],  # the name is its function's
        "generator",
        lambda *numbers: asked.append(numbers) or generator(*numbers),
    )
    for step in range(3):
        memory = persistent_es(episode, window=1).memory
        episode = episode._replace(memory=memory)
        assert memory.step == step + 1
    drawn = [torch.randn(3, generator=generator(*numbers)).tolist() for numbers in asked]
    theirs = torch.randn(3, generator=generator(episode.seed, episode.task.index, 1)).tolist()
    assert theirs not in drawn
    assert len({tuple(d) for d in drawn}) == 3
