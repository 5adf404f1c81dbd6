"""What Lightning and this framework cost: our training step beside the same mathematics, bare.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --learners bert --blocks 40
    python benchmarks/overhead.py --processes

The bare loop is what one would write by hand for one learner and one rule: autograd through K inner
steps of 4 tasks, a clipped Adam step on phi, and an SGD step on theta along the mean direction.
Both sides take the same tasks from the same stream and must be at the same phi and theta after the
first block, or the benchmark stops. They run in one process, a block of steps each in turn, and
each pair of neighbouring blocks gives one ratio; times are CPU seconds of the process, so that
other work on the machine counts as little as possible. A ratio of 1 means no overhead. With
``--processes``, the same fit by 1 and by 2 processes in turn, in wall seconds of the first one.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from rich import box
from rich.console import Console
from rich.table import Table
from torch.func import functional_call
from torch.nn import functional

from lightning_evolve.callbacks import Metrics
from lightning_evolve.data import Pixels, Words
from lightning_evolve.estimators import Unrolled
from lightning_evolve.learners import BERT, CNN, LSTM
from lightning_evolve.meta_learners import Gains, State
from lightning_evolve.modules import EvolvingClassifier
from lightning_evolve.streams import EpisodeStream

ALPHA, BETA, STEPS, TASKS, CLIP = 1e-3, 1e-2, 5, 4, 1.0
SMALL_BERT = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
}
# Learner, source, encoder, classes a task, steps of a block: about a second a block.
SETTINGS = {
    "lstm": (LSTM, "docstrings", Words(max_vocabulary=5000, max_length=32), 5, 4),
    "cnn": (CNN, "digits", Pixels(size=16), 3, 8),
    "bert": (partial(BERT, config=SMALL_BERT), "docstrings", Words(max_length=32), 5, 2),
}


def stream(name: str) -> EpisodeStream:
    """Returns the tasks of a setting: 5 support and 5 query rows a class."""
    _, source, encoder, ways, _ = SETTINGS[name]
    data = EpisodeStream(
        source=source,
        encoder=encoder,
        ways=ways,
        shots=5,
        queries=5,
        tasks_per_step=TASKS,
        steps_per_epoch=10**6,
        class_fractions=(0.4, 0.3, 0.3),
    )
    data.setup()
    return data


def module(name: str) -> EvolvingClassifier:
    """Returns our module for a setting; theta is persistent, so that both optimizers step."""
    return EvolvingClassifier(
        learner=SETTINGS[name][0],
        meta_learner=partial(Gains, horizon=STEPS),
        estimator=Unrolled(),
        theta="persistent",
        alpha=ALPHA,
        beta=BETA,
        steps=STEPS,
        clip=CLIP,
    )


class BareLoop:
    """The same training, written by hand without Lightning or this framework's engine.

    Args:
        name: of the setting.
        data: its stream.
    """

    def __init__(self, name: str, data: EpisodeStream) -> None:
        built = module(name)
        built.build(data.spec)
        self.data, self.learner, self.rule = data, built.learner, built.meta_learner
        # What a hand-written loop for second order would have been written for.
        self.learner.second_order = True
        self.theta = dict(self.learner.named_parameters())
        self.state = self.rule.init({n: p.detach() for n, p in self.theta.items()})
        self.outer = torch.optim.Adam(self.rule.parameters(), lr=BETA)
        self.inner = torch.optim.SGD(self.theta.values(), lr=ALPHA)
        self.step_number = 0

    def step(self) -> float:
        """Takes one outer step and returns the mean query loss."""
        first, self.step_number = self.step_number * TASKS, self.step_number + 1
        ends, states, losses = [], [], []
        self.outer.zero_grad()
        for index in range(first, first + TASKS):
            task = self.data.training_task(index)
            theta, state = self.theta, self.state
            theta = {n: p.detach().requires_grad_() for n, p in theta.items()}
            for _ in range(STEPS):
                (support,) = task.support
                logits = functional_call(self.learner, theta, (), support.inputs)
                loss = functional.cross_entropy(logits, support.labels)
                grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
                direction, state = self.rule(dict(zip(theta, grads, strict=True)), theta, state)
                moved = torch._foreach_add(
                    list(theta.values()), list(direction.values()), alpha=ALPHA
                )
                theta = dict(zip(theta, moved, strict=True))
            logits = functional_call(self.learner, theta, (), task.query.inputs)
            loss = functional.cross_entropy(logits, task.query.labels)
            (loss / TASKS).backward(inputs=list(self.rule.parameters()))
            losses.append(loss.detach())
            ends.append([t.detach() for t in theta.values()])
            states.append([t.detach() for a in state.accumulators.values() for t in a.values()])
        torch.nn.utils.clip_grad_norm_(self.rule.parameters(), CLIP)
        self.outer.step()
        means = [torch.stack(same).mean(dim=0) for same in zip(*ends, strict=True)]
        for p, mean in zip(self.theta.values(), means, strict=True):
            p.grad = (p.detach() - mean) / ALPHA
        self.inner.step()
        remembered = iter([torch.stack(same).mean(dim=0) for same in zip(*states, strict=True)])
        self.state = State(
            state.step,
            {
                kind: {n: next(remembered) for n in tensors}
                for kind, tensors in state.accumulators.items()
            },
        )
        return float(torch.stack(losses).mean())


class Interleaved(L.Callback):
    """Times blocks of Lightning's steps, and after each the same number of bare ones.

    Args:
        bare: the other side.
        length: steps of a block.
        warm_up: blocks that do not count.
    """

    def __init__(self, bare: BareLoop, length: int, warm_up: int = 2) -> None:
        self.bare, self.length, self.warm_up = bare, length, warm_up
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self.began = time.process_time()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        """Runs a bare block when one of Lightning's is over: all that it does lies in between."""
        if trainer.global_step % self.length:
            return
        between = time.process_time()
        self.ours.append(between - self.began)
        for _ in range(self.length):
            self.bare.step()
        self.theirs.append(time.process_time() - between)
        if len(self.theirs) == 1:
            # Later, rounding has grown: Adam turns the sign of a tiny gradient into a whole step.
            pairs = [(pl_module.meta_learner.log_gains, self.bare.rule.log_gains)]
            pairs += [(p, self.bare.theta[n]) for n, p in pl_module.theta().items()]
            apart = max(float((ours - bare).detach().abs().max()) for ours, bare in pairs)
            if apart > 1e-5:
                sys.exit(f"the two sides are {apart:.1e} apart after {self.length} steps")
        self.began = time.process_time()

    def ratios(self) -> np.ndarray:
        """Returns our throughput over the bare loop's, one number a pair of blocks."""
        return (np.array(self.theirs) / np.array(self.ours))[self.warm_up :]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Returns the median with its 95% interval by bootstrap."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def trainer(folder: str, steps: int, **options) -> L.Trainer:
    """Returns a trainer as the command line makes it, without a progress bar."""
    return L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        log_every_n_steps=10,
        **options,
    )


def beside_bare(name: str, blocks: int) -> tuple[np.ndarray, float]:
    """Runs a setting both ways.

    Args:
        name: of the setting.
        blocks: pairs of blocks that count.

    Returns:
        The ratios, and our milliseconds of CPU a step.
    """
    data, length = stream(name), SETTINGS[name][-1]
    bare, ours = BareLoop(name, data), module(name)
    timed = Interleaved(bare, length)
    with tempfile.TemporaryDirectory() as folder:
        steps = (blocks + timed.warm_up) * length
        trainer(folder, steps, devices=1, callbacks=[Metrics(), timed]).fit(ours, datamodule=data)
    return timed.ratios(), 1000 * float(np.median(timed.ours)) / length


class Timed(L.Callback):
    """Writes wall seconds a step of the first process, without the first steps."""

    def __init__(self, file: Path, warm_up: int) -> None:
        self.file, self.warm_up = file, warm_up

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        """Starts the clock after the warm-up."""
        if trainer.global_step == self.warm_up:
            self.began = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops it."""
        if trainer.is_global_zero:
            seconds = time.perf_counter() - self.began
            self.file.write_text(str(seconds / (trainer.max_steps - self.warm_up)))


def seconds_a_step(name: str, data: EpisodeStream, processes: int, steps: int) -> float:
    """Fits a setting by some processes and returns the wall seconds of a step."""
    options = {}
    if processes > 1:
        options["strategy"] = DDPStrategy(start_method="fork", process_group_backend="gloo")
    with tempfile.TemporaryDirectory() as folder:
        file, warm_up = Path(folder) / "seconds", 3
        timed = Timed(file, warm_up)
        ours = module(name)
        ours.build(data.spec)
        fit = trainer(folder, steps + warm_up, devices=processes, callbacks=[timed], **options)
        fit.fit(ours, datamodule=data)
        return float(file.read_text())


def two_processes(name: str, rounds: int) -> np.ndarray:
    """Returns how many times faster 2 processes are than 1, a number a round."""
    data, steps = stream(name), 5 * SETTINGS[name][-1]
    found = []
    for _ in range(rounds):
        alone, shared = (seconds_a_step(name, data, n, steps) for n in (1, 2))
        found.append(alone / shared)
    return np.array(found)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learners", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--blocks", type=int, default=30, help="pairs of blocks (default: 30)")
    parser.add_argument("--processes", action="store_true", help="1 against 2 processes instead")
    parser.add_argument("--rounds", type=int, default=6, help="of --processes (default: 6)")
    given = parser.parse_args()
    if given.blocks < 2 or given.rounds < 2:
        parser.error("--blocks and --rounds must be at least 2 for an interval")
    warnings.filterwarnings("ignore")
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    title = (
        f"Times faster by 2 processes than by 1 ({os.cpu_count()} cores), {TASKS} tasks a step"
        if given.processes
        else f"Throughput over the bare loop's: {STEPS} inner steps, second order, {TASKS} tasks"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in ("learner", "ratio", "95% interval", "pairs", "our CPU ms a step"):
        table.add_column(heading, justify="left" if heading == "learner" else "right")
    for name in given.learners:
        if given.processes:
            ratios, cost = two_processes(name, given.rounds), "-"
        else:
            ratios, milliseconds = beside_bare(name, given.blocks)
            cost = f"{milliseconds:.1f}"
        middle, low, high = interval(ratios)
        counts = f"{len(ratios)}"
        table.add_row(name, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", counts, cost)
    Console().print(table)


if __name__ == "__main__":
    main()
