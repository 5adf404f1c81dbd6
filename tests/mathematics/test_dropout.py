"""A learner that drops at random is as deterministic as any: by the seed, the task and the step."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_evolve.estimators import (
    ActorCritic,
    EvolutionStrategies,
    FirstOrder,
    PersistentES,
    Reinforce,
    Reptile,
    Unrolled,
    unrolled,
)
from lightning_evolve.estimators.implicit import Implicit
from lightning_evolve.inner_loop import Adapted, detached
from lightning_evolve.meta_learners import SGD, Controller
from lightning_evolve.noise import dropping, drops
from tests.mathematics.test_checkpointing import same
from tests.mathematics.test_meta_gradients import RULES, make_episode


class Dropping(nn.Module):
    """Linear layers with dropout between them, in the place of a learner."""

    second_order = tied = False

    def __init__(self, p=0.5):
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(5, 8), nn.Dropout(p), nn.Linear(8, 3)

    def forward(self, features):
        return self.head(self.drop(self.first(features).tanh()))


def episode_of(rule=RULES["gains"], steps=4, p=0.5, **options):
    episode = make_episode("head", rule, steps, (2, steps))
    torch.manual_seed(1)
    features = episode.task.query.inputs["features"].shape[1]
    learner = Dropping(p).double().requires_grad_(False)
    learner.first = nn.Linear(features, 8).double().requires_grad_(False)
    theta = detached(dict(learner.named_parameters()))
    rule = rule(theta).double()
    start = Adapted(theta, rule.init(theta))
    return episode._replace(learner=learner, meta_learner=rule, start=start, **options)


def learned(episode):
    theta = detached(episode.start.theta, requires_grad=True)
    return episode._replace(start=episode.start._replace(theta=theta))


PLAYED = {
    "unrolled": (Unrolled(), episode_of),
    "first order": (FirstOrder(), episode_of),
    "ES": (EvolutionStrategies(), episode_of),
    "persistent ES": (PersistentES(window=2), episode_of),
    "REINFORCE": (Reinforce(population=2), episode_of),
    "actor-critic": (ActorCritic(rollouts=2), partial(episode_of, Controller)),
    "implicit": (Implicit(), lambda: learned(episode_of(SGD))),
    "Reptile": (Reptile(), lambda: learned(episode_of(SGD))),
}


@pytest.mark.parametrize("name", PLAYED)
def test_what_was_drawn_before_changes_no_estimate(name):
    """So a run that goes on after a kill, and another process, find the same."""
    estimator, make = PLAYED[name]
    episode, found = make(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(estimator(episode))
        assert torch.equal(torch.rand(3), torch.rand(3, generator=fresh(seed))), "nothing taken"
    same(*found)
    another = estimator(episode._replace(task=episode.task._replace(index=7)))
    assert not torch.equal(found[0].reward, another.reward), "masks of its own"


def fresh(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("checkpoint", [1, 3])
@pytest.mark.parametrize("truncation", [0, 2])
def test_checkpoints_drop_the_same_again(checkpoint, truncation):
    episode = episode_of(steps=6)
    plain = unrolled(episode, truncation=truncation)
    same(unrolled(episode, truncation=truncation, checkpoint=checkpoint), plain)
    without = unrolled(episode_of(steps=6, p=0.0), truncation=truncation)
    assert not torch.equal(plain.reward, without.reward)


def test_both_sides_of_a_pair_drop_the_same():
    """Else the estimate is the noise of the masks, over sigma."""
    estimate = EvolutionStrategies(sigma=1e-4)(episode_of())
    exact = Unrolled()(episode_of())
    scale = max(float(g.abs().max()) for g in exact.phi.values())
    assert all(float(g.abs().max()) < 20 * scale for g in estimate.phi.values())


def test_what_counts_as_dropping():
    class DropPath(nn.Module):
        pass

    assert drops(DropPath())
    assert drops(nn.LSTM(2, 2, num_layers=2, dropout=0.1))
    assert not drops(nn.LSTM(2, 2))
    assert not drops(nn.Dropout(0.1).eval())
    state = torch.get_rng_state()
    with dropping(nn.Linear(2, 2), 0, 1):
        torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), state), "left alone, as nothing drops"
