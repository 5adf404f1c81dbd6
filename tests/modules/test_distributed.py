"""Two or four processes with a share of the tasks end where one process with all of them does."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from lightning_evolve.meta_learners import Gains
from lightning_evolve.modules import EvolvingClassifier
from lightning_evolve.streams import EpisodeStream
from tests.modules.small import Keep, difference, module, stream, trainer

STEPS = 12  # of 10 an epoch


def run(folder, processes, make_module=module, make_stream=stream, **trainer_options):
    folder.mkdir()
    options = dict(max_steps=STEPS, callbacks=[Keep(folder)])
    if processes > 1:
        strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
        options |= dict(devices=processes, strategy=strategy)
    else:
        options |= dict(devices=1)
    data = make_stream()
    data.setup()
    model = make_module()
    model.build(data.spec)
    trainer(folder, **{**options, **trainer_options}).fit(model, datamodule=data)
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process ends on, by mode of theta."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        mode: run(folder / mode, 1, lambda mode=mode: module(theta=mode))[0]
        for mode in ("episodic", "persistent")
    }


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("theta", ["episodic", "persistent"])
def test_several_processes_end_where_one_does(tmp_path, alone, theta, processes):
    # There are 3 tasks to validate on, so that at 4 processes one has none.
    ranks = run(tmp_path / "several", processes, lambda: module(theta=theta))
    for rank in ranks[1:]:
        assert difference(ranks[0], rank) == 0, "the processes agree bit for bit"
    assert set(EvolvingClassifier.METRICS) <= ranks[0].keys(), "metrics are compared too"
    assert difference(ranks[0], alone[theta]) < 1e-6
    start = module(theta=theta)
    data = stream()
    data.setup()
    start.build(data.spec)
    moved = (ranks[0]["meta_learner.log_gains"] - start.meta_learner.log_gains).abs().max()
    assert moved > 0.01, "phi has learned"
    if theta == "persistent":
        head = (ranks[0]["learner.head.weight"] - start.learner.head.weight).abs().max()
        assert head > 0.01, "theta has moved"


class RawBackward(EvolvingClassifier):
    """Control: backward() of the loss itself, on which DDP averages nothing."""

    def manual_backward(self, loss, *args, **kwargs):
        with self.trainer.model.no_sync() if dist.is_initialized() else torch.enable_grad():
            loss.backward()


class UnaveragedDirection(EvolvingClassifier):
    """Control: every process applies the direction of its own tasks."""

    def _carry_on(self, adapted):
        strategy = self.trainer.strategy
        reduce, strategy.reduce = strategy.reduce, lambda tensor, **_: tensor
        super()._carry_on(adapted)
        strategy.reduce = reduce


class ReducedInPlace(Gains):
    """Control: the direction averaged inside the unroll by an operation that autograd ignores."""

    def forward(self, grads, params, state):
        direction, state = super().forward(grads, params, state)
        for d in direction.values():
            # Not in evaluation, where the processes have different numbers of tasks.
            if dist.is_initialized() and torch.is_grad_enabled():
                dist.all_reduce(d.data)
                d.data.div_(dist.get_world_size())
        return direction, state


class LightningsSampler(EpisodeStream):
    """Control: a plain loader, in which Lightning puts a shuffling DistributedSampler."""

    def train_dataloader(self):
        tasks = [self.training_task(i) for i in range(4 * STEPS)]
        per_rank = self.tasks_per_step // self.trainer.world_size
        return DataLoader(tasks, batch_size=per_rank, collate_fn=list)


@pytest.mark.parametrize(
    ("control", "theta"),
    [
        ("raw backward", "episodic"),
        ("direction not averaged", "persistent"),
        ("in-place all_reduce", "persistent"),
        ("lightning's sampler", "episodic"),
    ],
)
def test_a_wrong_variant_fails_the_same_check(tmp_path, alone, control, theta):
    options = {"make_module": lambda: module(theta=theta)}
    if control == "raw backward":
        options["make_module"] = lambda: module(RawBackward, theta=theta)
    elif control == "direction not averaged":
        options["make_module"] = lambda: module(UnaveragedDirection, theta=theta)
    elif control == "in-place all_reduce":
        options["make_module"] = lambda: module(
            theta=theta, meta_learner=lambda params: ReducedInPlace(params, horizon=2)
        )
    else:
        options["make_stream"] = lambda: LightningsSampler(
            **{k: v for k, v in vars(stream()).items() if k in ("source", "encoder", "ways")},
            shots=2,
            queries=3,
            class_fractions=(0.4, 0.3, 0.3),
        )
        options["use_distributed_sampler"] = True
    ranks = run(tmp_path / "two", 2, **options)
    assert max(difference(rank, alone[theta]) for rank in ranks) > 1e-5
