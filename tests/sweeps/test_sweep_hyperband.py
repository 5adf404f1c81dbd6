from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from lightning_evolve.sweeps.hyperband import Hyperband

pytest.importorskip("optuna")

Goal = Literal["minimize", "maximize"]


def test_rungs_by_hand() -> None:
    assert Hyperband(min_iter=3, eta=2).rungs(25) == [3, 6, 12, 24]
    assert Hyperband(min_iter=3, eta=2).rungs(2) == []
    assert Hyperband(max_iter=27, eta=3, s=2).rungs(100) == [3, 9]
    assert Hyperband(max_iter=27, eta=3, s=2).rungs(8) == [3]
    # Rungs below one iteration do not exist.
    assert Hyperband(max_iter=5, eta=2, s=4).rungs(100) == [1, 2]


def test_the_worse_of_two_is_stopped_at_the_first_rung() -> None:
    hyperband = Hyperband(min_iter=2, eta=3)
    assert hyperband.should_stop([5.0, 3.0], [[9.0, 2.0]], "minimize")
    assert not hyperband.should_stop([5.0, 3.0], [[9.0, 2.0]], "maximize")
    assert not hyperband.should_stop([5.0], [[1.0]], "minimize")
    assert not hyperband.should_stop([5.0, 3.0], [[1.0]], "minimize")
    assert not hyperband.should_stop([5.0, 3.0], [], "minimize")


def test_as_many_stay_as_with_wandb() -> None:
    # floor(n / eta) + 1 of n; Optuna's own pruner would keep one fewer.
    hyperband = Hyperband(min_iter=1, eta=3)
    for n, kept in ((1, 1), (2, 1), (3, 2), (5, 2), (6, 3), (9, 4)):
        losses = [[float(i)] for i in range(n)]
        stay = [
            not hyperband.should_stop(losses[i], losses[:i] + losses[i + 1 :], "minimize")
            for i in range(n)
        ]
        assert stay == [True] * kept + [False] * (n - kept)


def test_without_strict_a_better_value_earlier_or_later_counts() -> None:
    others = [[1.0, 1.0, 4.0], [1.0, 4.0, 4.0]]
    own = [1.0, 9.0, 2.0]
    assert Hyperband(min_iter=2, eta=3).should_stop(own, others, "minimize")
    assert not Hyperband(min_iter=2, eta=3, strict=False).should_stop(own, others, "minimize")


def test_values_that_are_not_finite_are_no_iterations() -> None:
    hyperband = Hyperband(min_iter=2)
    assert not hyperband.should_stop([float("nan"), 3.0], [[1.0, 1.0]], "minimize")
    assert hyperband.should_stop([float("nan"), 3.0, 3.0], [[1.0, 1.0]], "minimize")


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"min_iter": 1, "eta": 2},
        {"min_iter": 3, "eta": 3},
        {"min_iter": 2, "eta": 4},
        {"max_iter": 27, "eta": 3, "s": 2},
        {"max_iter": 30, "eta": 2, "s": 9},
    ],
    ids=str,
)
def test_the_same_runs_stop_as_with_wandb(
    options: dict[str, int], strict: bool, goal: Goal, wandb_sweeps: Any
) -> None:
    rng = np.random.default_rng(0)
    stopped = 0
    for case in range(16):
        histories = [
            # Few levels, so that there are ties; now and then a value that is not finite.
            [
                float(base + v) if v < 5 else float("nan")
                for v in rng.integers(0, 6, rng.integers(0, 40))
            ]
            for base in rng.integers(0, 8, 1 + case)
        ]
        running = [bool(b) for b in rng.integers(0, 4, len(histories))]
        runs = [
            wandb_sweeps.SweepRun(
                name=str(i),
                state="running" if running[i] else "finished",
                history=[{"loss": value} for value in history],
            )
            for i, history in enumerate(histories)
        ]
        config = {
            "method": "random",
            "metric": {"name": "loss", "goal": goal},
            "parameters": {"x": {"value": 1}},
            "early_terminate": {"type": "hyperband", "strict": strict, **options},
        }
        theirs = {
            int(run.name)
            for run in wandb_sweeps.hyperband_stopping.hyperband_stop_runs(runs, config)
        }
        hyperband = Hyperband(**options, strict=strict)
        ours = {
            i
            for i, history in enumerate(histories)
            if running[i]
            and hyperband.should_stop(history, histories[:i] + histories[i + 1 :], goal)
        }
        assert ours == theirs
        stopped += len(ours)
    assert stopped > 5
