"""The inner loop as an environment of Gymnasium."""

from __future__ import annotations

import importlib
import math
import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.inner_loop import adapt, logits
from lightning_evolve.learners import CNN
from lightning_evolve.meta_learners import Adam
from lightning_evolve.rewards import Accuracy, Function, NegativeLoss
from lightning_evolve.streams import BatchStream
from tests.modules.small import stream

pytest.importorskip("gymnasium", reason="needs the extra rl")


def make(**options):
    from lightning_evolve.environment import InnerLoopEnv

    return InnerLoopEnv(
        stream(), partial(CNN, channels=(3, 4)), **{"alpha": 0.01, "steps": 4, **options}
    )


def episode(env, actions, **reset):
    seen, info = env.reset(**reset)
    trace = [(seen, 0.0, info["score"])]
    for action in actions:
        seen, reward, done, cut, info = env.step(action)
        trace.append((seen, reward, info["score"]))
        assert not cut
    return trace, done


@pytest.mark.filterwarnings("error")
def test_gymnasiums_own_checks_pass():
    from gymnasium.utils.env_checker import check_env

    env = make()
    check_env(env, skip_render_check=True)


def test_the_action_0_is_adam_and_the_return_is_the_improvement():
    env = make()
    zeros = [np.zeros(len(env.groups), np.float32)] * 4
    trace, done = episode(env, zeros, options={"task": 5})
    assert done
    task, theta = env.stream.training_task(5), env.initial
    after = adapt(env.learner, Adam(theta), theta, task, alpha=0.01, steps=4).theta
    score = [
        float(NegativeLoss()(logits(env.learner, t, task.query), task.query.labels))
        for t in (theta, after)
    ]
    assert trace[0][2] == pytest.approx(score[0])
    assert trace[-1][2] == pytest.approx(score[1])
    assert sum(reward for _, reward, _ in trace) == pytest.approx(score[1] - score[0])


def test_an_action_scales_the_step_of_its_group_only():
    env = make(decades=2.0)
    moved = []
    for action in (np.zeros(len(env.groups)), np.array([0.5, *np.zeros(len(env.groups) - 1)])):
        env.reset(options={"task": 1})
        env.step(action.astype(np.float32))
        moved.append({n: env.theta[n] - t for n, t in env.initial.items()})
    for name, by_one in moved[0].items():
        ratio = 10.0 if name.split(".")[0] == env.groups[0] else 1.0
        torch.testing.assert_close(moved[1][name], ratio * by_one, rtol=1e-3, atol=1e-5)


def test_a_seed_gives_the_same_tasks_and_numbers():
    env, other = make(), make()
    actions = [np.full(len(env.groups), 0.3, np.float32)] * 4
    for seed in (1, None):  # the second episode follows from the first one's seed
        one, _ = episode(env, actions, seed=seed)
        same, _ = episode(other, actions, seed=seed)
        for (a, r, _), (b, q, _) in zip(one, same, strict=True):
            assert np.array_equal(a, b)
            assert r == q
    assert not np.array_equal(episode(env, actions, seed=2)[0][0][0], one[0][0])


def test_held_out_tasks_and_any_reward():
    env = make(split="test", reward=Accuracy())
    env.reset(options={"task": 0})
    assert env.task.name == env.stream.tasks("test", 1)[0].name
    assert env.score == 0 or 0 < env.score <= 1


def test_a_learner_that_diverges_ends_the_episode_with_a_return_of_minus_one():
    count = iter([0.5, 0.7, math.inf])
    env = make()
    env.reward = lambda *_: torch.tensor(next(count))
    zeros = np.zeros(len(env.groups), np.float32)
    env.reset(seed=0)
    _, first, done, _, _ = env.step(zeros)
    assert not done
    seen, second, done, _, _ = env.step(zeros)
    assert done
    assert first + second == pytest.approx(-1)
    assert env.observation_space.contains(seen)


@pytest.mark.parametrize("reward", [Accuracy(), Function(lambda x, _: x.max()), NegativeLoss()])
def test_predictions_that_are_not_finite_end_it_whatever_the_reward(reward):
    env = make(alpha=1e30, reward=reward)
    env.reset(seed=0)
    gained, done = 0.0, False
    while not done:
        _, one, done, _, _ = env.step(np.ones(len(env.groups), np.float32))
        gained += one
    assert gained == pytest.approx(-1)


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="steps is 0"):
        make(steps=0)
    with pytest.raises(UsageError, match="alpha is nan"):
        make(alpha=math.nan)
    env = make()
    env.reset(seed=0)
    with pytest.raises(UsageError, match="from -1 to 1"):
        env.step(np.full(len(env.groups), 2.0))
    with pytest.raises(UsageError, match="head"):
        env.step([0.0] * (len(env.groups) + 1))
    from lightning_evolve.environment import InnerLoopEnv

    with pytest.raises(UsageError, match="BatchStream"):
        InnerLoopEnv(BatchStream(source="digits"), CNN, split="test")
    with pytest.raises(UsageError, match="finite"):
        make(reward=Function(lambda *_: math.nan)).reset(seed=0)


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "lightning_evolve.environment", raising=False)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-evolve\[rl\]'"):
        importlib.import_module("lightning_evolve.environment")


def test_ppo_of_stable_baselines_trains_on_it():
    sb3 = pytest.importorskip("stable_baselines3", reason="needs the extra rl")
    from stable_baselines3.common.env_checker import check_env

    env = make()
    check_env(env, skip_render_check=True)
    model = sb3.PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu", seed=0)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(32)
    assert any(
        not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True)
    )
    seen, _ = env.reset(seed=1)
    action, _ = model.predict(seen, deterministic=True)
    assert env.action_space.contains(action)


def test_the_example_runs(capsys):
    pytest.importorskip("stable_baselines3", reason="needs the extra rl")
    example = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "ppo.py"))
    gains = example["main"](["--timesteps", "20", "--tasks", "3", "--tuning_tasks", "1"])
    assert gains["PPO"]["mean"] == 0
    for gain in gains.values():
        assert gain["low"] <= gain["mean"] <= gain["high"]
    assert "Adam, tuned" in capsys.readouterr().out


def test_it_does_not_pay_to_diverge():
    """However much was lost before, and however large the numbers."""
    count = iter([0.0, -3e26, math.inf])
    env = make()
    env.reward = lambda *_: torch.tensor(next(count))
    zeros = np.zeros(len(env.groups), np.float32)
    env.reset(seed=0)
    _, first, _, _, _ = env.step(zeros)
    _, last, done, _, _ = env.step(zeros)
    assert done
    assert first < 0
    assert last == -1


def test_dropout_is_off():
    class Dropping(CNN):
        def __init__(self, spec):
            super().__init__(spec, channels=(3, 4))
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, images):
            return super().forward(self.drop(images))

    from lightning_evolve.environment import InnerLoopEnv

    env = InnerLoopEnv(stream(), Dropping, alpha=0.01, steps=2)
    first, second = (env.reset(options={"task": 3}) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert first[1] == second[1]


def test_mistakes_of_who_plays():
    env = make()
    zeros = np.zeros(len(env.groups), np.float32)
    with pytest.raises(UsageError, match="call reset"):
        env.step(zeros)
    for options in ({"tsk": 3}, {"task": 2.7}, {"task": -1}, {"task": "abc"}):
        with pytest.raises(UsageError, match="options of reset have"):
            env.reset(options=options)
    env.reset(seed=0)
    with pytest.raises(UsageError, match="action is 'x'"):
        env.step("x")
    for _ in range(4):
        done = env.step(zeros)[2]
    assert done
    with pytest.raises(UsageError, match="the episode is at its end"):
        env.step(zeros)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 2.5}, "steps is 2.5"),
        ({"adapt": "head"}, r"adapt is 'head'; give a list, such as \['head'\]"),
        ({"reward": "accuracy"}, "reward is 'accuracy'"),
    ],
)
def test_mistakes_of_who_builds(options, said):
    with pytest.raises(UsageError, match=said):
        make(**options)
