"""Several processes play one task together, each its share of the population."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import ActorCritic, EvolutionStrategies, Reinforce
from lightning_evolve.meta_learners import Controller
from lightning_evolve.modules import EvolvingClassifier
from tests.modules.small import difference, module, stream
from tests.modules.test_distributed import run

# The last run that a process has played is another in each.
OF_THE_LAST_RUN = ("train/loss", "train/accuracy")


class SamePairs(EvolutionStrategies):
    """Control: every process plays all that there is to play of the first part."""

    def __call__(self, episode):
        _, parts = episode.task.share
        task = episode.task._replace(share=(0, parts))
        return super().__call__(episode._replace(task=task))


ESTIMATORS = {
    "evolution strategies": (EvolutionStrategies(pairs=4), {}),
    "actor-critic": (ActorCritic(rollouts=4), {"meta_learner": partial(Controller, horizon=2)}),
}


def play(folder, processes, estimator, tasks=1, **options):
    torch.manual_seed(0)  # a rule's networks are drawn from the global generator
    ranks = run(
        folder,
        processes,
        lambda: module(estimator=estimator, **options),
        lambda: stream(tasks_per_step=tasks),
        # A difference of two rewards, over 2 sigma, makes much of how 32 bits are rounded.
        precision="64-true",
    )
    return [{k: v for k, v in rank.items() if k not in OF_THE_LAST_RUN} for rank in ranks]


@pytest.mark.parametrize(
    ("name", "theta", "processes", "tasks"),
    [
        ("evolution strategies", "episodic", 2, 1),
        ("evolution strategies", "persistent", 2, 1),
        ("evolution strategies", "episodic", 4, 2),
        ("actor-critic", "episodic", 2, 1),
        ("actor-critic", "persistent", 2, 1),
    ],
)
def test_processes_that_share_a_task_end_where_one_does(tmp_path, name, theta, processes, tasks):
    estimator, options = ESTIMATORS[name]
    (alone,) = play(tmp_path / "alone", 1, estimator, tasks, theta=theta, **options)
    ranks = play(tmp_path / "several", processes, estimator, tasks, theta=theta, **options)
    for rank in ranks[1:]:
        assert difference(ranks[0], rank) == 0, "the processes agree bit for bit"
    assert difference(ranks[0], alone) < 1e-6
    assert alone["meta_learner.log_gains"].abs().max() > 0.01, "phi has learned"
    assert set(EvolvingClassifier.METRICS) - set(OF_THE_LAST_RUN) <= alone.keys()


def test_the_same_pairs_everywhere_fail_the_same_check(tmp_path):
    (alone,) = play(tmp_path / "alone", 1, EvolutionStrategies(pairs=4))
    ranks = play(tmp_path / "two", 2, SamePairs(pairs=4))
    assert max(difference(rank, alone) for rank in ranks) > 1e-4


@pytest.mark.parametrize(
    ("estimator", "tasks", "match"),
    [
        (EvolutionStrategies(pairs=3), 1, "pairs is 3"),
        (Reinforce(), 1, "Reinforce cannot share"),
        (EvolutionStrategies(pairs=6), 3, "give a multiple of 4"),
    ],
)
def test_what_cannot_be_shared_is_refused(estimator, tasks, match):
    data = stream(tasks_per_step=tasks)
    data.setup()

    class FourProcesses:
        global_rank, world_size, global_step, accumulate_grad_batches = 0, 4, 0, 1
        lightning_module = module(estimator=estimator)

    data.trainer = FourProcesses()
    with pytest.raises(UsageError, match=match) as error:
        data.train_dataloader()
    assert "\n" not in str(error.value)


def test_a_module_that_shares_nothing_is_refused():
    data = stream(tasks_per_step=1)
    data.setup()

    class TwoProcesses:
        global_rank, world_size, global_step, accumulate_grad_batches = 0, 2, 0, 1
        lightning_module = torch.nn.Module()

    data.trainer = TwoProcesses()
    with pytest.raises(UsageError, match="give a multiple of 2"):
        data.train_dataloader()
