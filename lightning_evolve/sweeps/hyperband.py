"""Early termination of trials that are behind, by Hyperband's successive halving.

Source: L. Li et al., Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization,
JMLR 18 (2018); with the rungs of W&B, https://docs.wandb.ai/guides/sweeps/sweep-config-keys
(early_terminate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Hyperband:
    """Stops what is not among the best at the last rung that it has reached.

    A rung is a number of iterations, and an iteration is one logging of the objective; numbers
    that are not finite do not count, as with W&B. At a rung that n trials have reached, the best
    floor(n / eta) + 1 of them go on.

    Args:
        min_iter: the first rung; the others are min_iter eta^k.
        max_iter: instead of the first rung, what the rungs are fractions of: max_iter / eta^k,
            k from 1 to s, rounded down.
        eta: how many times fewer trials reach the next rung.
        s: number of rungs below max_iter.
        strict: compare the value at the rung; otherwise the best value so far, which stops less.
    """

    min_iter: int | None = None
    max_iter: int | None = None
    eta: int = 3
    s: int | None = None
    strict: bool = True

    def rungs(self, iterations: int) -> list[int]:
        """Returns the rungs that a trial of that many iterations has reached, from low to high.

        Args:
            iterations: how often it has logged the objective.

        Example:
            >>> Hyperband(min_iter=2).rungs(20), Hyperband(max_iter=27, s=2).rungs(20)
            ([2, 6, 18], [3, 9])
        """
        if self.max_iter is not None:
            assert self.s is not None
            fractions = (self.max_iter // self.eta**k for k in range(self.s, 0, -1))
            return [rung for rung in fractions if 1 <= rung <= iterations]
        assert self.min_iter is not None
        assert self.min_iter >= 1
        rungs, rung = [], self.min_iter
        while rung <= iterations:
            rungs.append(rung)
            rung *= self.eta
        return rungs

    def should_stop(
        self,
        own: Sequence[float],
        others: Sequence[Sequence[float]],
        goal: Literal["minimize", "maximize"],
    ) -> bool:
        """Returns whether a running trial is to be stopped, given what all trials have logged.

        It depends on the trials as they are now, as with W&B: a trial that passed a rung is
        stopped later if enough better ones reach the same rung before it reaches the next.

        Args:
            own: its objective, [iterations].
            others: the objective of every other trial of the sweep, running or not.
            goal: whether a high or a low objective is good.
        """
        histories = [_losses(history, goal) for history in (own, *others)]
        mine = histories[0]
        reached = self.rungs(len(mine))
        if not reached:
            return False
        rung = reached[-1]
        rivals = sorted(history[rung - 1] for history in histories if len(history) >= rung)
        # The floor(n / eta) + 1 lowest of n go on, the trial itself among the n.
        return (mine[rung - 1] if self.strict else min(mine)) > rivals[len(rivals) // self.eta]


def _losses(history: Sequence[float], goal: str) -> list[float]:
    sign = -1 if goal == "maximize" else 1
    return [sign * value for value in history if math.isfinite(value)]
