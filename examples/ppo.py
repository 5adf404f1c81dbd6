"""PPO of Stable-Baselines3 learns to control the step sizes of a CNN, on real digits.

The policy is trained on four digits and evaluated on three others; the baseline is the action 0,
which is Adam at alpha. One to two minutes on one core.

    pip install 'lightning-evolve[rl]'
    python examples/ppo.py
    python examples/ppo.py --timesteps 30000 --alpha 0.02
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from stable_baselines3 import PPO

from lightning_evolve.data import Pixels
from lightning_evolve.environment import InnerLoopEnv
from lightning_evolve.evaluation.statistics import interval
from lightning_evolve.learners import CNN
from lightning_evolve.rewards import Accuracy
from lightning_evolve.streams import EpisodeStream


def play(env: InnerLoopEnv, policy: PPO | None, tasks: int) -> np.ndarray:
    """Plays the first tasks of a split, by a policy's mean action or by Adam, and scores them."""
    scores = []
    for task in range(tasks):
        observation, info = env.reset(options={"task": task})
        done = False
        while not done:
            action = np.zeros(env.action_space.shape, np.float32)
            if policy:
                action, _ = policy.predict(observation, deterministic=True)
            observation, _, done, _, info = env.step(action)
        scores.append(info["score"])
    return np.array(scores)


def main(arguments: list[str] | None = None) -> dict[str, float | None]:
    """Trains, evaluates, prints, and returns the gain in accuracy with its interval."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=10_000, help="inner steps to learn from")
    parser.add_argument("--alpha", type=float, default=0.02, help="Adam's step size")
    parser.add_argument("--steps", type=int, default=5, help="inner steps of an episode")
    parser.add_argument("--tasks", type=int, default=200, help="held-out tasks to evaluate on")
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
    held_out = make(split="test")
    adam, ppo = (play(held_out, p, options.tasks) for p in (None, policy))
    gain = interval(ppo - adam)
    print(f"accuracy on {options.tasks} held-out tasks after {options.steps} inner steps")
    print(f"  Adam  {adam.mean():.3f}")
    print(f"  PPO   {ppo.mean():.3f}")
    print(f"  gain  {gain['mean']:+.3f}, 95% interval {gain['low']:+.3f} to {gain['high']:+.3f}")
    return gain


if __name__ == "__main__":
    main()
