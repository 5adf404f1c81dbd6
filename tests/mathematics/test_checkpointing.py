"""Checkpointed unrolling: the numbers of plain unrolling, bit for bit, for less memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import FirstOrder, Unrolled, first_order, unrolled
from lightning_evolve.estimators.room import graph_bytes
from lightning_evolve.inner_loop import detached
from lightning_evolve.meta_learners import SGD, Adam, Momentum
from lightning_evolve.rewards import NegativeLoss
from tests.mathematics.test_meta_gradients import LEARNERS, RULES, make_episode

FIXED = {"sgd": SGD, "momentum": Momentum, "adam": partial(Adam, eps=1e-2)}


def episode_of(learner, rule, *, steps=7, measured=(2, 5, 7), learn_init=False):
    episode = make_episode(learner, {**RULES, **FIXED}[rule], steps, measured)
    if learn_init:
        initial = detached(episode.start.theta, requires_grad=True)
        episode = episode._replace(start=episode.start._replace(theta=initial))
    return episode


def same(one, other):
    assert torch.equal(one.reward, other.reward)
    assert torch.equal(one.logits, other.logits)
    for ours, theirs in (
        (one.phi, other.phi),
        (one.theta, other.theta),
        (one.adapted.theta, other.adapted.theta),
        *zip(
            one.adapted.state.accumulators.values(),
            other.adapted.state.accumulators.values(),
            strict=True,
        ),
    ):
        assert ours.keys() == theirs.keys()
        for name, t in ours.items():
            assert torch.equal(t, theirs[name]), name


@pytest.mark.parametrize("learn_init", [False, True])
@pytest.mark.parametrize(
    ("learner", "rule"),
    [
        *(("head", rule) for rule in [*RULES, *FIXED]),
        *((learner, "gains") for learner in LEARNERS if learner != "head"),
        ("lstm", "mlp"),
    ],
)
def test_every_rule_and_learner(learner, rule, learn_init):
    episode = episode_of(learner, rule, learn_init=learn_init)
    for graph in ("full", "first_order"):
        plain = unrolled(episode, graph=graph)
        same(unrolled(episode, checkpoint=3, graph=graph), plain)
    moved = [*plain.phi.values(), *plain.theta.values()]
    assert not moved or any(t.abs().max() > 1e-6 for t in moved), "zeros would equal anything"


@pytest.mark.parametrize("measured", [(7,), (1, 3, 7), tuple(range(1, 8))])
@pytest.mark.parametrize("truncation", [0, 3, 5])
@pytest.mark.parametrize("learn_init", [False, True])
def test_every_segment_length(truncation, measured, learn_init):
    episode = episode_of("head", "linear", measured=measured, learn_init=learn_init)
    plain = unrolled(episode, truncation=truncation)
    for checkpoint in (1, 3, 6, 9):
        same(unrolled(episode, truncation=truncation, checkpoint=checkpoint), plain)


def test_gradients_summed_over_segments_apart_would_differ():
    """Negative control: what the order of the sum is kept for."""
    episode = episode_of("head", "mlp", measured=tuple(range(1, 8)))
    plain = unrolled(episode)
    # One window of rewards each, differentiated all the way back and then added up.
    apart = [unrolled(episode._replace(measured=(k,), steps=k)) for k in episode.measured]
    differs = False
    for name, whole in plain.phi.items():
        total = sum(estimate.phi[name] for estimate in apart) / len(apart)
        torch.testing.assert_close(total, whole)
        differs |= not torch.equal(total, whole)
    assert differs


class Kept:
    """Counts the bytes that graphs keep at a time."""

    now = most = 0

    def __init__(self, tensor):
        # Detached, for a tensor that knows of the graph that keeps it would live for ever.
        self.tensor, self.bytes = tensor.detach(), tensor.numel() * tensor.element_size()
        Kept.now += self.bytes
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self):
        Kept.now -= self.bytes


def most_kept(call):
    Kept.now = Kept.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        call()
    return Kept.most


@pytest.mark.parametrize("graph", ["full", "first_order"])
def test_the_graph_of_one_segment_at_a_time_is_kept(graph):
    episode = episode_of("lstm", "gains", steps=90, measured=(45, 90))
    plain = most_kept(lambda: unrolled(episode, graph=graph))
    segment = most_kept(lambda: unrolled(episode, checkpoint=3, graph=graph))
    assert segment < plain / 10


def test_the_room_that_is_asked_for_is_that_of_the_graph():
    """Query predictions come on top, so that it is a lower bound, and a close one."""
    episode = episode_of("lstm", "gains", steps=30, measured=(30,))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unrolled(episode)
    whole = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert 0.8 * whole < 30 * graph_bytes(episode, "full") < 1.05 * whole


def test_the_classes_pass_it_on():
    episode = episode_of("lstm", "mlp")
    same(Unrolled(checkpoint=2)(episode), unrolled(episode))
    same(FirstOrder(checkpoint=2)(episode), first_order(episode))


def test_a_negative_length_is_refused_and_one_that_saves_nothing_warned_of():
    with pytest.raises(UsageError, match="checkpoint is -1; give 0"):
        Unrolled(checkpoint=-1)
    options = dict(reward=NegativeLoss(), measured=(5,), learn_init=False)
    with pytest.warns(match="checkpoint is 5 and .* 5 inner steps: nothing is saved"):
        Unrolled(checkpoint=5).check(steps=5, **options)
