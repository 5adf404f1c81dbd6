"""The outer step on phi over generations, by evolution strategies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators.perturbation import gaussian
from lightning_evolve.noise import generator
from lightning_evolve.tasks import Tensors


def perturbations(
    phi: Tensors, pairs: int, sigma: float, seed: int, generation: int = 0
) -> list[Tensors]:
    r"""Draws the antithetic variants of phi that a generation tries.

    Args:
        phi: tensors by name.
        pairs: n.
        sigma: standard deviation of the noise.
        seed: of the run.
        generation: its number; each has noise of its own.

    Returns:
        :math:`\phi + \sigma \epsilon_1, \phi - \sigma \epsilon_1, \phi + \sigma \epsilon_2, \dots`

    Example:
        >>> up, down = perturbations({"gain": torch.ones(2)}, 1, 0.1, seed=0)
        >>> torch.allclose(up["gain"] + down["gain"], 2 * torch.ones(2))
        True
    """
    return [
        {name: (p + sign * sigma * epsilon[name]).detach() for name, p in phi.items()}
        for epsilon in _noise(phi, pairs, seed, generation)
        for sign in (1, -1)
    ]


def ascent(
    phi: Tensors, rewards: Sequence[float], sigma: float, seed: int, generation: int = 0
) -> Tensors:
    r"""Estimates the gradient of the reward by phi from what the variants reached.

    .. math::
        \nabla_\phi E[R] \approx \frac{1}{n} \sum_{i=1}^n
        \frac{R_{+i} - R_{-i}}{2 \sigma} \, \epsilon_i

    (Salimans et al. 2017). A pair of which one has no finite reward, such as a challenger that
    diverged, says nothing and is left out.

    Args:
        phi: what :func:`perturbations` was called with, and so on.
        rewards: of its variants in their order; higher is better.
        sigma: see there.
        seed: see there.
        generation: see there.

    Returns:
        The estimate by name; zero where no pair is left.
    """
    assert len(rewards) % 2 == 0
    total = {name: torch.zeros_like(p) for name, p in phi.items()}
    used = 0
    noise = _noise(phi, len(rewards) // 2, seed, generation)
    for epsilon, up, down in zip(noise, rewards[::2], rewards[1::2], strict=True):
        if math.isfinite(up) and math.isfinite(down):
            used += 1
            for name, value in total.items():
                value += (up - down) / (2 * sigma) * epsilon[name]
    return {name: value / max(used, 1) for name, value in total.items()}


class OuterStep:
    r"""Climbs the reward of whole generations by phi, with Adam at the rate beta.

    .. math:: \phi \leftarrow \phi + \beta \, \mathrm{Adam}(\nabla_\phi E[R])

    Args:
        phi: where to start, tensors by name.
        beta: rate of the outer step.
        sigma: standard deviation of the perturbation.
        pairs: antithetic pairs a generation; each costs two challengers.
        seed: of the noise.

    Attributes:
        phi: where it stands.
        generation: steps taken.

    Raises:
        UsageError: if a number is not positive.

    Example:
        >>> outer = OuterStep({"x": torch.zeros(1)}, beta=0.1, pairs=4)
        >>> for _ in range(50):
        ...     phi = outer.step([-float((v["x"] - 1) ** 2) for v in outer.perturbations()])
        >>> bool(abs(phi["x"] - 1) < 0.1)
        True
    """

    def __init__(
        self,
        phi: Tensors,
        *,
        beta: float = 0.03,
        sigma: float = 0.1,
        pairs: int = 2,
        seed: int = 0,
    ) -> None:
        for name, value in (("beta", beta), ("sigma", sigma), ("pairs", pairs)):
            if not value > 0:
                raise UsageError(f"{name} is {value}; give a number above 0")
        self.phi = {name: p.detach().clone() for name, p in phi.items()}
        self.sigma, self.pairs, self.seed = sigma, pairs, seed
        self.generation = 0
        self._adam = torch.optim.Adam(self.phi.values(), lr=beta, maximize=True)

    def perturbations(self) -> list[Tensors]:
        """Returns the variants of phi that this generation tries, two a pair."""
        return perturbations(self.phi, self.pairs, self.sigma, self.seed, self.generation)

    def step(self, rewards: Sequence[float]) -> Tensors:
        """Moves phi, and goes on to the next generation.

        Args:
            rewards: of the variants, in their order.

        Returns:
            A copy of phi after the step; as it was where no pair has finite rewards.
        """
        assert len(rewards) == 2 * self.pairs
        pairs = zip(rewards[::2], rewards[1::2], strict=True)
        if any(math.isfinite(up) and math.isfinite(down) for up, down in pairs):
            slope = ascent(self.phi, rewards, self.sigma, self.seed, self.generation)
            for name, p in self.phi.items():
                p.grad = slope[name]
            self._adam.step()
        self.generation += 1
        return {name: p.clone() for name, p in self.phi.items()}

    def state_dict(self) -> Tensors:
        """Returns tensors alone, under flat names, as safetensors takes them."""
        state = {"generation": torch.tensor(self.generation)}
        for name, p in self.phi.items():
            state[f"phi.{name}"] = p.clone()
            for kind, value in self._adam.state[p].items():
                state[f"{kind}.{name}"] = value.clone()
        return state

    def load_state_dict(self, state: Tensors) -> None:
        """Goes on exactly where another one stood.

        Args:
            state: what its :meth:`state_dict` returned.

        Raises:
            UsageError: if its phi is that of another rule.
        """
        ours = {f"phi.{name}": p.shape for name, p in self.phi.items()}
        theirs = {name: p.shape for name, p in state.items() if name.startswith("phi.")}
        if ours != theirs:
            raise UsageError(
                f"the saved outer step is for {sorted(theirs)}, and the meta-learner has "
                f"{sorted(ours)} or other shapes; start a new run to change the meta-learner"
            )
        self.generation = int(state["generation"])
        for name, p in self.phi.items():
            p.copy_(state[f"phi.{name}"])
            kinds = ("step", "exp_avg", "exp_avg_sq")
            saved = {k: state[f"{k}.{name}"].clone() for k in kinds if f"{k}.{name}" in state}
            self._adam.state[p] = saved


def _noise(phi: Tensors, pairs: int, seed: int, generation: int) -> list[Tensors]:
    source = generator(seed, generation)
    return [gaussian(phi, source) for _ in range(pairs)]
