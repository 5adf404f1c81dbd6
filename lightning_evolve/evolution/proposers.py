"""Proposers: which settings a generation tries."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_evolve.errors import UsageError

Settings = dict[str, Any]
Space = dict[str, list[Any]]
"""Choices by the name of a setting; the first of each is the default."""

_MOST = 10_000


class Proposer:
    """Chooses settings to try, and learns from what they reached.

    Whatever is random is a function of the seed that ``propose`` is given and of the observations
    so far; a proposer that is saved and loaded goes on exactly.

    Args:
        space: choices by the name of a setting, of values that JSON can hold. The first of each is
            the default, which is proposed before anything has been observed.
        forgetting: what an observation still counts for after the next one; 1 forgets nothing.
            At 0.95 the last 20 or so count.
        price: reward that a unit of cost must bring.

    Attributes:
        observed: how many trials it has seen.
        spent: their cost.

    Raises:
        UsageError: if the space or a number makes no sense.
    """

    def __init__(self, space: Space, *, forgetting: float = 0.95, price: float = 0.0) -> None:
        for name, choices in space.items():
            if not choices:
                raise UsageError(f"{name} has no choices; give at least one")
            if any(choice in choices[:place] for place, choice in enumerate(choices)):
                raise UsageError(f"{name} has a choice twice: {choices}; leave one out")
        if not 0 < forgetting <= 1:
            raise UsageError(
                f"forgetting is {forgetting}; give a share such as 0.95, or 1 for none"
            )
        if price < 0:
            raise UsageError(f"price is {price}; give 0 or more")
        size = math.prod(len(choices) for choices in space.values())
        if size > _MOST:
            raise UsageError(f"the space has {size} combinations; leave {_MOST} at most")
        self.space, self.forgetting, self.price = space, forgetting, price
        self.observed, self.spent = 0, 0.0
        self._worst: float | None = None
        # Each a row of positions among the choices; the first row is the default.
        self._combinations = np.array(
            list(product(*(range(len(choices)) for choices in space.values()))), dtype=int
        )

    def propose(self, count: int, seed: int) -> list[Settings]:
        """Returns settings to try, all different; the default first where nothing is known yet.

        Args:
            count: how many; fewer come where the space has no more.
            seed: of the draws.
        """
        source = np.random.default_rng([seed, self.observed])
        left = np.ones(len(self._combinations), dtype=bool)
        chosen = []
        for number in range(min(count, len(left))):
            first = number == 0 and self.observed == 0
            place = 0 if first else int(np.where(left, self._draw(source), -np.inf).argmax())
            left[place] = False
            chosen.append(self._settings(place))
        return chosen

    def observe(self, settings: Settings, reward: float, cost: float = 0.0) -> None:
        """Learns what a trial came to; one without a finite reward counts as the worst so far.

        Rewards of different generations compare only where what they share is taken out: give the
        gain over the champion rather than the accuracy.

        Args:
            settings: what was tried, from the space.
            reward: higher is better.
            cost: in the unit of ``price``.

        Raises:
            UsageError: if the settings are none of the space.
        """
        place = self._place(settings)
        self.observed += 1
        self.spent += cost
        gain = reward - self.price * cost
        if math.isfinite(gain):
            self._worst = gain if self._worst is None else min(self._worst, gain)
        else:
            gain = 0.0 if self._worst is None else self._worst
        self._learn(place, gain)

    def best(self) -> Settings:
        """Returns the settings that look best by now; the default where nothing is known."""
        return self._settings(self._best())

    def state_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {
            "space": self.space,
            "observed": self.observed,
            "spent": self.spent,
            "worst": self._worst,
            "learned": self._learned(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly where another one stood.

        Args:
            state: what its :meth:`state_dict` returned.

        Raises:
            UsageError: if it is of another space.
        """
        if state["space"] != self.space:
            raise UsageError(
                f"the saved proposer chooses among {state['space']}, and the configuration among "
                f"{self.space}; start a new run to change the choices"
            )
        self.observed, self.spent = state["observed"], state["spent"]
        self._worst = state["worst"]
        self._load(state["learned"])

    def _draw(self, source: np.random.Generator) -> NDArray[np.float64]:
        """A number for each combination, of which the highest is proposed."""
        raise NotImplementedError

    def _learn(self, place: int, reward: float) -> None:
        raise NotImplementedError

    def _best(self) -> int:
        raise NotImplementedError

    def _learned(self) -> dict[str, Any]:
        raise NotImplementedError

    def _load(self, learned: dict[str, Any]) -> None:
        raise NotImplementedError

    def _settings(self, place: int) -> Settings:
        positions = self._combinations[place]
        return {n: self.space[n][i] for n, i in zip(self.space, positions, strict=True)}

    def _place(self, settings: Settings) -> int:
        for name, value in settings.items():
            if value not in self.space.get(name, []):
                raise UsageError(f"{name}: {value} is none of the choices {self.space.get(name)}")
        if settings.keys() != self.space.keys():
            raise UsageError(f"give all of {sorted(self.space)}, not only {sorted(settings)}")
        positions = [choices.index(settings[name]) for name, choices in self.space.items()]
        return int((self._combinations == positions).all(axis=1).argmax())


class RandomSearch(Proposer):
    """Draws combinations at random, and remembers the mean reward of each: the baseline.

    Args:
        space: see :class:`Proposer`.
        forgetting: see :class:`Proposer`.
        price: see :class:`Proposer`.

    Example:
        >>> search = RandomSearch({"alpha": [0.01, 0.1], "steps": [5, 10]})
        >>> search.propose(1, seed=0)
        [{'alpha': 0.01, 'steps': 5}]
        >>> search.observe({"alpha": 0.1, "steps": 10}, reward=0.5)
        >>> search.best()
        {'alpha': 0.1, 'steps': 10}
    """

    def __init__(self, space: Space, *, forgetting: float = 0.95, price: float = 0.0) -> None:
        super().__init__(space, forgetting=forgetting, price=price)
        self._weight, self._sum = np.zeros((2, len(self._combinations)))

    def _draw(self, source: np.random.Generator) -> NDArray[np.float64]:
        return source.random(len(self._combinations))

    def _learn(self, place: int, reward: float) -> None:
        for total, value in ((self._weight, 1.0), (self._sum, reward)):
            total *= self.forgetting
            total[place] += value

    def _best(self) -> int:
        tried = self._weight > 0
        means = np.where(tried, self._sum / np.where(tried, self._weight, 1), -np.inf)
        return int(means.argmax())

    def _learned(self) -> dict[str, Any]:
        return {"weight": self._weight.tolist(), "sum": self._sum.tolist()}

    def _load(self, learned: dict[str, Any]) -> None:
        self._weight, self._sum = np.array(learned["weight"]), np.array(learned["sum"])


class ThompsonSampling(Proposer):
    r"""A linear bandit by Thompson sampling (Agrawal & Goyal 2013) that forgets.

    The reward of a combination is the sum of what its choices bring, with noise of unknown
    variance: :math:`r \sim N(x^T w, s^2)`, where x is 1 and one-hot by setting. With the conjugate
    prior, and observations that count :math:`\gamma` times less after each further one (Russac et
    al. 2019),

    .. math::
        B = \Lambda + \sum_t \gamma^{T-t} x_t x_t^T, \quad
        \mu = B^{-1} \sum_t \gamma^{T-t} r_t x_t, \quad
        s^2 \sim IG(a, b), \quad w \sim N(\mu, s^2 B^{-1}),

    a draw of w is taken for each proposal, and the combination that is best by it. What is
    uncertain is tried often, what is known to be bad seldom, and what has not been tried for long
    grows uncertain again.

    Args:
        space: see :class:`Proposer`.
        forgetting: see :class:`Proposer`.
        price: see :class:`Proposer`.
        scale: a guess at what a choice changes in the reward; some ten observations outweigh it.

    Example:
        >>> bandit = ThompsonSampling({"alpha": [0.01, 0.1], "steps": [5, 10]})
        >>> for seed in range(20):
        ...     (settings,) = bandit.propose(1, seed)
        ...     bandit.observe(settings, reward=settings["alpha"], cost=settings["steps"])
        >>> bandit.best()["alpha"]
        0.1
    """

    def __init__(
        self,
        space: Space,
        *,
        forgetting: float = 0.95,
        price: float = 0.0,
        scale: float = 0.02,
    ) -> None:
        super().__init__(space, forgetting=forgetting, price=price)
        if not scale > 0:
            raise UsageError(f"scale is {scale}; give a number above 0, such as 0.02")
        self.scale = scale
        columns = [np.ones((len(self._combinations), 1))]
        for position, choices in enumerate(space.values()):
            columns.append(np.eye(len(choices))[self._combinations[:, position]])
        self._x = np.concatenate(columns, axis=1)
        width = self._x.shape[1]
        # What all combinations share is not known beforehand; what sets them apart is small.
        self._prior = np.diag([1e-3] + [1.0] * (width - 1))
        self._xx, self._xr = np.zeros((width, width)), np.zeros(width)
        self._rr, self._n = 0.0, 0.0

    def _posterior(self) -> tuple[NDArray[np.float64], NDArray[np.float64], float, float]:
        covariance = np.linalg.inv(self._prior + self._xx).astype(np.float64)
        mean = covariance @ self._xr
        shape = 1 + self._n / 2
        rate = self.scale**2 + max(0.0, self._rr - float(self._xr @ mean)) / 2
        return mean, covariance, shape, rate

    def _draw(self, source: np.random.Generator) -> NDArray[np.float64]:
        mean, covariance, shape, rate = self._posterior()
        variance = rate / source.gamma(shape)
        normal = source.standard_normal(len(mean))
        draw: NDArray[np.float64] = self._x @ (
            mean + np.sqrt(variance) * np.linalg.cholesky(covariance) @ normal
        )
        return draw

    def _learn(self, place: int, reward: float) -> None:
        x, keep = self._x[place], self.forgetting
        self._xx = keep * self._xx + np.outer(x, x)
        self._xr = keep * self._xr + reward * x
        self._rr = keep * self._rr + reward**2
        self._n = keep * self._n + 1

    def _best(self) -> int:
        # Of choices that have been tried: a default that disappointed is no reason for another.
        tried = (self._x[:, np.diag(self._xx) == 0] == 0).all(axis=1)
        if not tried.any():
            return 0
        return int(np.where(tried, self._x @ self._posterior()[0], -np.inf).argmax())

    def _learned(self) -> dict[str, Any]:
        return {
            "xx": self._xx.tolist(),
            "xr": self._xr.tolist(),
            "rr": self._rr,
            "n": self._n,
        }

    def _load(self, learned: dict[str, Any]) -> None:
        self._xx, self._xr = np.array(learned["xx"]), np.array(learned["xr"])
        self._rr, self._n = learned["rr"], learned["n"]
