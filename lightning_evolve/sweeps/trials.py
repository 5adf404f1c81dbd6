"""A trial: one choice of parameters, what became of it, and what it logged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_evolve.sweeps.objective import Goal, over_seeds


@dataclass
class Trial:
    """One choice of the parameters, trained with one seed or several.

    Args:
        number: its place in the sweep, from 0.
        parameters: value by dotted name.
        state: stopped means by early termination, failed by an error.
        objective: mean over seeds of each run's best value; None while unknown or never finite.
        history: by seed, the objective at each logging so far.
        reason: why it failed, one line.
        seconds: how long its runs took.
        done: the seeds, by their place, whose runs have ended well.
    """

    number: int
    parameters: dict[str, Any]
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    objective: float | None = None
    history: list[list[float]] = field(default_factory=list)
    reason: str | None = None
    seconds: float = 0.0
    done: list[int] = field(default_factory=list)

    def so_far(self, goal: Goal) -> float | None:
        """Returns the objective, of a trial that is running that of what it has logged yet.

        Args:
            goal: what is better.
        """
        return over_seeds(self.history, goal) if self.state == "running" else self.objective
