"""Persistent evolution strategies: unbiased over long horizons, one short window at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.base import Episode, Estimate, Estimator
from lightning_evolve.estimators.memory import Memory
from lightning_evolve.estimators.perturbation import gaussian, perturbed
from lightning_evolve.inner_loop import Adapted
from lightning_evolve.noise import generator
from lightning_evolve.rewards import Reward


def persistent_es(episode: Episode, *, window: int, sigma: float = 0.1, pairs: int = 1) -> Estimate:
    r"""Estimates the gradient from one window of an episode that goes on (Vicol et al. 2021).

    .. math::
        \hat g_t = \frac{T}{n} \sum_{i=1}^n
        \frac{R_t(\theta_i^+, \phi + \sigma \epsilon_{i,t})
        - R_t(\theta_i^-, \phi - \sigma \epsilon_{i,t})}{2 \sigma^2} \, \xi_{i,t}, \qquad
        \xi_{i,t} = \sum_{\tau \le t} \sigma \epsilon_{i,\tau}

    Each particle keeps its own theta and rule's state from window to window, and its reward is
    credited to all perturbations xi that it has lived through, not to the last one alone as in
    truncated evolution strategies, which are blind to what pays off after the window. R_t is the
    window's part of the episode's mean reward; the mean of the T estimates of an episode of T
    windows is an unbiased estimate of the gradient of the (smoothed) mean reward, if phi stays
    meanwhile. phi moves T times as often as with the full horizon, and the noise grows with T.

    Args:
        episode: what to play; its memory says where the particles are, and is None where they
            begin at ``episode.start``.
        window: inner steps to take, a divisor of K.
        sigma: standard deviation of the perturbation in a window, in units of phi.
        pairs: antithetic pairs n.

    Returns:
        The estimate by phi; the mean reward within the window; the logits and learner at the end of
        the last particle's; and the memory for the next window, None at the end of the episode.
    """
    phi = episode.meta_learner.phi()
    memory = episode.memory or Memory(
        task=episode.task,
        step=0,
        particles=(episode.start,) * (2 * pairs),
        drift=tuple({n: torch.zeros_like(p) for n, p in phi.items()} for _ in range(pairs)),
    )
    assert memory.task.index == episode.task.index, "a task under way is played to its end"
    steps = range(memory.step, memory.step + window)
    # A fourth number, as the third of others is a choice of theirs, such as of the initial theta.
    noise = generator(episode.seed, episode.task.index, memory.step, window)
    totals = {name: torch.zeros_like(p) for name, p in phi.items()}
    particles: list[Adapted] = []
    drifts, rewards = [], []
    for pair, before in enumerate(memory.drift):
        epsilon = gaussian(phi, noise)
        drift = {n: before[n] + sigma * epsilon[n] for n in phi}
        sums = []
        for side, sign in enumerate((1.0, -1.0)):
            with perturbed(phi, epsilon, sign * sigma):
                scores, out, adapted = _play(episode, memory.particles[2 * pair + side], steps)
            particles.append(adapted)
            sums.append(scores.sum() / len(episode.measured))
            rewards.append(scores.mean())
        slope = (sums[0] - sums[1]) / (2 * sigma**2) * (episode.steps / window / pairs)
        for name, total in totals.items():
            total += slope * drift[name]
        drifts.append(drift)
    ended = steps.stop >= episode.steps
    return Estimate(
        phi=totals,
        theta={},
        reward=torch.stack(rewards).mean(),
        logits=out,
        adapted=adapted,
        memory=None if ended else Memory(memory.task, steps.stop, tuple(particles), tuple(drifts)),
    )


@torch.no_grad()
def _play(episode: Episode, begin: Adapted, steps: range) -> tuple[Tensor, Tensor, Adapted]:
    """One window without a graph: its measured rewards, the last logits measured, the learner."""
    rewards = []
    for k, adapted in episode.walk(begin, steps):
        if k in episode.measured:
            out, reward = episode.score(adapted.theta, k)
            rewards.append(reward)
    return torch.stack(rewards), out, adapted


@dataclass(frozen=True)
class PersistentES(Estimator):
    """Evolution strategies over windows of a long episode; serves every reward.

    An outer step takes one window of each task, and the next one goes on with it: of the stream's
    tasks only those are played that come when the one before is at its end.

    Args:
        window: inner steps of an outer step, a divisor of K.
        sigma: standard deviation of the perturbation of phi in a window.
        pairs: antithetic pairs a task, each with two copies of theta and the rule's state.

    Raises:
        UsageError: if ``window`` or ``pairs`` is below 1 or ``sigma`` not positive.
    """

    window: int
    sigma: float = 0.1
    pairs: int = 1
    remembers = True

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.window < 1:
            raise UsageError(f"window is {self.window}; give at least 1 inner step")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"sigma is {self.sigma}; give a positive number such as 0.1")
        if self.pairs < 1:
            raise UsageError(f"pairs is {self.pairs}; give at least 1")

    def __call__(self, episode: Episode) -> Estimate:
        """See :func:`persistent_es`."""
        return persistent_es(episode, window=self.window, sigma=self.sigma, pairs=self.pairs)

    def check(
        self, *, reward: Reward, steps: int, measured: tuple[int, ...], learn_init: bool
    ) -> None:
        """See :meth:`Estimator.check`."""
        if learn_init:
            raise UsageError(
                "PersistentES cannot learn the initial theta: the noise of its estimate grows with "
                "the number of parameters; use Unrolled or FirstOrder"
            )
        if steps % self.window:
            fits = [n for n in range(1, steps + 1) if steps % n == 0]
            raise UsageError(
                f"window is {self.window} and does not divide the {steps} inner steps; "
                f"give one of {', '.join(map(str, fits))}"
            )
        windows = steps // self.window
        if len({(k - 1) // self.window for k in measured}) < windows:
            raise UsageError(
                f"measurements is {len(measured)} and an episode has {windows} windows: an outer "
                f"step without a reward would learn nothing; give measurements: {windows} or a "
                "multiple of it"
            )
