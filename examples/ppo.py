"""PPO of Stable-Baselines3 learns to control the step sizes of a CNN, on real digits.

The policy is trained on four digits and evaluated on three others. The baselines are the action 0,
which is Adam at alpha, and the constant action that does best on training tasks, which is Adam with
its rate tuned. One to two minutes on one core.

    pip install 'lightning-evolve[rl]'
    python examples/ppo.py
    python examples/ppo.py --timesteps 30000 --alpha 0.02
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
from stable_baselines3 import PPO

from lightning_evolve.data import Pixels
from lightning_evolve.environment import InnerLoopEnv
from lightning_evolve.evaluation.statistics import interval
from lightning_evolve.learners import CNN
from lightning_evolve.rewards import Accuracy
from lightning_evolve.streams import EpisodeStream


def play(env: InnerLoopEnv, act: Callable[[np.ndarray], np.ndarray], tasks: int) -> np.ndarray:
    """Plays the first tasks of a split, and scores them."""
    scores = []
    for task in range(tasks):
        observation, info = env.reset(options={"task": task})
        done = False
        while not done:
            observation, _, done, _, info = env.step(act(observation))
        scores.append(info["score"])
    return np.array(scores)


def constant(env: InnerLoopEnv, action: float) -> Callable[[np.ndarray], np.ndarray]:
    """Adam: the same action in every step, for every group."""
    return lambda _: np.full(env.action_space.shape, action, np.float32)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float | None]]:
    """Trains, evaluates, prints, and returns PPO's gain in accuracy over each player."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=10_000, help="inner steps to learn from")
    parser.add_argument("--alpha", type=float, default=0.02, help="Adam's step size")
    parser.add_argument("--steps", type=int, default=5, help="inner steps of an episode")
    parser.add_argument("--tasks", type=int, default=200, help="held-out tasks to evaluate on")
    parser.add_argument("--tuning_tasks", type=int, default=40, help="training tasks to tune on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    stream = EpisodeStream(
        source="digits",
        encoder=Pixels(size=8),
        ways=3,
        class_fractions=(0.4, 0.3, 0.3),
        seed=options.seed,
    )
    make = partial(
        InnerLoopEnv,
        stream,
        partial(CNN, channels=(4, 8)),
        Accuracy(),
        alpha=options.alpha,
        steps=options.steps,
    )
    policy = PPO(
        "MlpPolicy",
        make(),
        gamma=1.0,  # an episode has an end
        n_steps=min(500, options.timesteps),
        batch_size=min(100, options.timesteps),
        learning_rate=1e-3,
        device="cpu",
        seed=options.seed,
    )
    policy.learn(options.timesteps)
    train, held_out = make(), make(split="test")
    grid = np.linspace(-1, 1, 7)
    tuned = max(grid, key=lambda a: play(train, constant(train, a), options.tuning_tasks).mean())
    players = {
        "Adam": constant(held_out, 0.0),
        "Adam, tuned": constant(held_out, tuned),
        "PPO": lambda seen: policy.predict(seen, deterministic=True)[0],
    }
    scores = {name: play(held_out, act, options.tasks) for name, act in players.items()}
    print(f"accuracy on {options.tasks} held-out tasks after {options.steps} inner steps")
    gains = {}
    for name, of_tasks in scores.items():
        gains[name] = gain = interval(scores["PPO"] - of_tasks)
        beside = f"PPO gains {gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
        print(f"  {name:12} {of_tasks.mean():.3f}  {beside if name != 'PPO' else ''}")
    return gains


if __name__ == "__main__":
    main()
