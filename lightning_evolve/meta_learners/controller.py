"""A stochastic controller of step sizes: the policy and the critic of a policy gradient."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, check_scale, named
from lightning_evolve.meta_learners.moments import adam_moments
from lightning_evolve.meta_learners.statistics import STATISTICS, progress, training_statistics
from lightning_evolve.tasks import Tensors


class Observation(NamedTuple):
    """A state of the Markov decision process, as the controller sees it.

    Args:
        statistics: of each tensor, with progress in the last column; ``[tensors, statistics]``.
        direction: Adam's direction, which an action scales.
        state: the rule's next state, whatever the action.
    """

    statistics: Tensor
    direction: list[Tensor]
    state: State


class Controller(MetaLearner):
    r"""Step sizes drawn from a Gaussian policy over an Adam-like direction.

    .. math::
        d_n = e^{a_n} \, \mathrm{Adam}_n, \qquad
        a_n \sim \pi_\phi(\cdot \mid s) = N(\mu_n(s), \sigma_n(s)^2)

    As a Markov decision process (Daniel et al. 2016; Li and Malik 2017), the *state* s is what
    :func:`training_statistics` says of each tensor, and the progress; the *action* a is the
    logarithm of each tensor's step size over alpha. Mean and log standard deviation are a number
    of each tensor plus an output of one small network that all tensors share; the *value function*
    V(s) is another network on the mean statistics. ``forward`` takes the mean action and draws
    nothing: that is how the rule is evaluated, and how it serves other estimators, under which
    spread and critic are idle. :class:`~lightning_evolve.estimators.ActorCritic` draws.

    The mean is 0 at the start: exactly Adam.

    Args:
        params: the parameters that will adapt.
        horizon: inner steps over which progress runs from 0 to 1.
        spread: standard deviation of the actions at the start.
        hidden_size: width of the hidden layer of either network.
        scale: factor of the policy network, which makes a step of beta on phi a small step of it.

    Raises:
        UsageError: if ``horizon`` or ``hidden_size`` is below 1 or ``spread`` or
            ``scale`` not positive.
    """

    accumulators = ("m", "v")

    def __init__(
        self,
        params: Tensors,
        *,
        horizon: int = 100,
        spread: float = 0.2,
        hidden_size: int = 16,
        scale: float = 0.1,
    ) -> None:
        super().__init__(params)
        if horizon < 1 or hidden_size < 1:
            raise UsageError(
                f"horizon is {horizon} and hidden_size is {hidden_size}; give at least 1 of each"
            )
        check_scale(scale)
        if not (math.isfinite(spread) and spread > 0):
            raise UsageError(
                f"spread is {spread}, and a policy that always does the same learns nothing; "
                "give a positive number such as 0.2"
            )
        self.horizon, self.scale = horizon, scale
        self.log_gains = nn.Parameter(torch.zeros(len(params)))
        self.log_spreads = nn.Parameter(torch.full((len(params),), math.log(spread)))
        # Where each tensor's numbers stand in phi.
        self.register_buffer("rows", torch.arange(len(params)), persistent=False)
        inputs = len(STATISTICS) + 1
        self.policy_network = _network(inputs, hidden_size, 2)
        self.critic = _network(inputs + 2, hidden_size, 1)

    rows: Tensor

    def over(self, params: Tensors) -> Self:
        """See :meth:`MetaLearner.over`."""
        other = super().over(params)
        other.rows = self.rows[self.places(params)]
        return other

    def observe(self, grads: Tensors, params: Tensors, state: State) -> Observation:
        """Returns the state of the decision process.

        Args:
            grads: as in ``forward``.
            params: as in ``forward``.
            state: as in ``forward``.
        """
        moments = adam_moments(grads, state)
        statistics = training_statistics(
            list(grads.values()), list(params.values()), moments.m, moments.v, moments.state.step
        )
        passed = statistics.new_full((len(statistics), 1), progress(state.step, self.horizon))
        return Observation(torch.cat([statistics, passed], -1), moments.direction, moments.state)

    def policy(self, statistics: Tensor) -> torch.distributions.Normal:
        """Returns the distribution of the actions, independent over tensors.

        Args:
            statistics: ``[..., tensors, statistics]``, of one or of many states.

        Returns:
            Gaussians of shape ``[..., tensors]``.
        """
        out = self.scale * self.policy_network(statistics)
        return torch.distributions.Normal(
            self.log_gains.index_select(0, self.rows) + out[..., 0],
            (self.log_spreads.index_select(0, self.rows) + out[..., 1]).exp(),
            validate_args=False,  # it would wait for the device
        )

    def value(self, statistics: Tensor, score: Tensor, remaining: Tensor) -> Tensor:
        """Returns V(s), the expected sum of the rewards that are still to come.

        The critic is asked in training only, and may see more than the policy (Pinto et al. 2018):
        the score on the query set, from which the possible improvement follows.

        Args:
            statistics: ``[..., tensors, statistics]``.
            score: R of theta as it is, ``[...]``.
            remaining: share of the inner steps that is still to come, ``[...]``.

        Returns:
            Values of shape ``[...]``.
        """
        seen = torch.cat([statistics.mean(dim=-2), torch.stack([score, remaining], -1)], -1)
        value: Tensor = self.critic(seen)
        return value.squeeze(-1)

    def act(self, observation: Observation, action: Tensor) -> tuple[Tensors, State]:
        """Returns what ``forward`` does, for any action.

        Args:
            observation: the state.
            action: log step size of each tensor over alpha, ``[tensors]``.
        """
        steps = list(action.exp().unbind())
        direction = torch._foreach_mul(observation.direction, steps)
        return named(self.names, direction), observation.state

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`; the action is the policy's mean."""
        observation = self.observe(grads, params, state)
        return self.act(observation, self.policy(observation.statistics).mean)


def _network(inputs: int, hidden_size: int, outputs: int) -> nn.Sequential:
    """One hidden layer, whose output is zero at the start."""
    last = nn.Linear(hidden_size, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden_size), nn.Tanh(), last)
