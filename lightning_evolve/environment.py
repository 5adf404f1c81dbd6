r"""The inner loop as an environment of Gymnasium, for any library of reinforcement learning.

=============== ==================================================================================
state s_k       the learner theta_k, Adam's moments, the task; observed as training statistics
action a_k      the logarithm of each group's step size, over alpha
transition      one inner step, :math:`\theta_{k+1} = \theta_k + \alpha \, e^{a_k} \mathrm{Adam}_k`
reward r_k      the improvement :math:`R(\theta_{k+1}) - R(\theta_k)` of the score of the query set
episode         the K inner steps of one task of a stream
return          undiscounted, :math:`\sum_k r_k = R(\theta_K) - R(\theta_0)`
value function  V(s_k), the improvement that is still to be expected; learned by the library
=============== ==================================================================================

An agent of one's own choice so learns what :class:`~lightning_evolve.meta_learners.Controller`
learns under :class:`~lightning_evolve.estimators.ActorCritic` with no other library.
``examples/ppo.py`` trains one.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lightning_evolve.errors import UsageError
from lightning_evolve.inner_loop import detached, logits
from lightning_evolve.learners.base import LearnerFactory
from lightning_evolve.meta_learners import State
from lightning_evolve.meta_learners.moments import adam_moments
from lightning_evolve.meta_learners.statistics import STATISTICS, training_statistics
from lightning_evolve.modules.building import adapting, build
from lightning_evolve.rewards import NegativeLoss, Reward
from lightning_evolve.streams import BatchStream, Stream
from lightning_evolve.tasks import Task, Tensors

try:
    import gymnasium
except ImportError as error:
    raise ImportError("InnerLoopEnv needs Gymnasium; pip install 'lightning-evolve[rl]'") from error

Array = NDArray[np.float32]
_BOUND = 10.0  # of an observation; statistics are of the order of 1


class InnerLoopEnv(gymnasium.Env[Array, Array]):
    """Choose the step size of each group of parameters, in each inner step.

    A group is all that adapts in one top-level part of the learner, such as the embedding of an
    LSTM. The action 0 is Adam at the rate alpha. Observed are, of each group, its
    :func:`~lightning_evolve.meta_learners.statistics.training_statistics`; then the support loss,
    by how much it fell in the step before, and the share of the K steps that is done. Nothing of
    the query set is observed, so the policy serves where there is none.

    Each ``reset`` draws a task. ``reset(seed=...)`` makes that task and all that follow a function
    of the seed; ``reset(options={"task": 7})`` plays task 7 of the split.

    Args:
        stream: where the tasks come from, such as an ``EpisodeStream``.
        learner: builds the base classifier; its initial weights are a function of ``seed``.
        reward: score of the query set; ``NegativeLoss`` if not given.
        alpha: inner step size.
        steps: inner steps K, the length of an episode.
        decades: an action of 1 multiplies a rate by ten to this power, one of -1 divides it.
        adapt: which parameters adapt: ``all``, ``head``, or patterns of names.
        split: which tasks are drawn: ``train``, ``validation`` or ``test``.
        seed: of the initial theta.

    Raises:
        UsageError: for a number out of range, or a split that the stream has no tasks of.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # as Gymnasium declares it

    def __init__(
        self,
        stream: Stream,
        learner: LearnerFactory,
        reward: Reward | None = None,
        *,
        alpha: float = 1e-3,
        steps: int = 20,
        decades: float = 1.0,
        adapt: list[str] | None = None,
        split: Literal["train", "validation", "test"] = "train",
        seed: int = 0,
    ) -> None:
        for name, value in (("alpha", alpha), ("decades", decades)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}; give a finite number above 0")
        if steps < 1:
            raise UsageError(f"steps is {steps}; an episode takes at least 1 inner step")
        if split != "train" and isinstance(stream, BatchStream):
            raise UsageError(
                f"split is {split!r}, which BatchStream has no tasks of; give split='train', or a "
                "stream of tasks such as EpisodeStream"
            )
        if not isinstance(steps, int):
            raise UsageError(f"steps is {steps}; give a whole number of inner steps")
        if isinstance(adapt, str):
            raise UsageError(f"adapt is {adapt!r}; give a list, such as [{adapt!r}]")
        if reward is not None and not isinstance(reward, Reward):
            raise UsageError(f"reward is {reward!r}; give one of lightning_evolve.rewards")
        stream.setup()
        self.stream, self.split = stream, split
        self.reward = reward or NegativeLoss()
        self.alpha, self.steps, self.decades = alpha, steps, decades
        self.learner = build(learner, stream.spec, seed).requires_grad_(False).eval()
        self.initial = detached(adapting(self.learner, adapt or ["all"]))
        self.groups = tuple(dict.fromkeys(name.split(".")[0] for name in self.initial))
        observed = len(self.groups) * len(STATISTICS) + 3
        self.observation_space = gymnasium.spaces.Box(-_BOUND, _BOUND, (observed,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(self.groups),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begins an episode: another task, theta_0 again.

        Args:
            seed: of the tasks from here on.
            options: ``{"task": index}`` to choose the task.

        Returns:
            The first observation, and what :meth:`step` returns as ``info``.
        """
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31))
        options = {"task": drawn, **(options or {})}
        index = options.pop("task")
        if options or not (isinstance(index, int | np.integer) and index >= 0):
            raise UsageError(
                f"options of reset have {next(iter(options.items()), ('task', index))}; give task, "
                "the number of one from 0 on, or none"
            )
        self.task = self._task(int(index))
        self.done = False
        self.theta = self.initial
        zeros = {name: torch.zeros_like(t) for name, t in self.theta.items()}
        self.state = State(0, {"m": zeros, "v": zeros})
        self.loss = math.nan
        self.gained, self.score = 0.0, self._score()
        return self._observe(), self._info()

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Takes one inner step.

        Args:
            action: for each group, in -1..1.

        Returns:
            The next observation; the improvement of the score; whether the K steps are done; False,
            as an episode is never cut short; and the ``score``, the support ``loss`` and the
            ``task``. A learner whose predictions or score are no longer finite ends the
            episode with a reward of -1, and less where the return would be above -1 else.

        Raises:
            UsageError: if the action is not one of the action space, or no episode is under way.
        """
        if getattr(self, "done", True):
            raise UsageError("the episode is at its end, or has not begun; call reset")
        try:
            action = np.asarray(action, dtype=np.float32)
        except (TypeError, ValueError):
            raise UsageError(f"action is {action!r}; give numbers from -1 to 1") from None
        if not self.action_space.contains(action):
            raise UsageError(
                f"action is {action.tolist()}; give {len(self.groups)} numbers from -1 to 1, for "
                f"the groups {', '.join(self.groups)}"
            )
        ratios = dict(zip(self.groups, (10.0 ** (self.decades * action)).tolist(), strict=True))
        self.theta = {
            name: t + self.alpha * ratios[name.split(".")[0]] * self.direction[name]
            for name, t in self.theta.items()
        }
        score = self._score()
        diverged = not math.isfinite(score)
        reward = min(-1.0, -1.0 - self.gained) if diverged else score - self.score
        self.score, self.gained = score, self.gained + reward
        observation = self._observe()
        self.done = diverged or self.state.step > self.steps
        return observation, reward, self.done, False, self._info()

    def _task(self, index: int) -> Task:
        if self.split == "train":
            return self.stream.training_task(index)
        tasks: list[Task] = self.stream.tasks(self.split, 1, index)  # type: ignore[attr-defined]
        return tasks[0]

    def _info(self) -> dict[str, Any]:
        return {"score": self.score, "loss": self.loss, "task": self.task.name}

    @torch.no_grad()
    def _score(self) -> float:
        query = self.task.query
        predictions = logits(self.learner, self.theta, query)
        if not predictions.isfinite().all():  # some rewards, such as the accuracy, do not mind
            return math.nan
        return float(self.reward(predictions, query.labels))

    def _observe(self) -> Array:
        """Looks at the gradient of the step to come, and keeps Adam's direction for it."""
        done, before = self.state.step, self.loss
        batch = self.task.support[done % len(self.task.support)]
        with torch.enable_grad():
            theta = detached(self.theta, requires_grad=True)
            loss = functional.cross_entropy(logits(self.learner, theta, batch), batch.labels)
            gradients = torch.autograd.grad(loss, list(theta.values()), materialize_grads=True)
        self.loss = float(loss.detach())
        grads = dict(zip(theta, gradients, strict=True))
        moments = adam_moments(grads, self.state)
        self.direction = dict(zip(theta, moments.direction, strict=True))
        self.state = moments.state
        statistics = training_statistics(
            self._by_group(grads),
            self._by_group(self.theta),
            self._by_group(self.state.accumulators["m"]),
            self._by_group(self.state.accumulators["v"]),
            self.state.step,
        )
        fall = before - self.loss if done else 0.0
        seen = np.array([*statistics.flatten().tolist(), self.loss, fall, done / self.steps])
        bounded: Array = np.nan_to_num(seen, nan=_BOUND).clip(-_BOUND, _BOUND).astype(np.float32)
        return bounded

    def _by_group(self, tensors: Tensors) -> list[Tensor]:
        """All tensors of a group as one vector."""
        return [
            torch.cat([t.reshape(-1) for n, t in tensors.items() if n.split(".")[0] == group])
            for group in self.groups
        ]
