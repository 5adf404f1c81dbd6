"""Exact and first-order MAML beside other libraries: tasks per CPU-second and peak memory.

    python benchmarks/meta_step.py
    python benchmarks/meta_step.py --learners lstm --orders second --rounds 20
    python benchmarks/meta_step.py --tasks 2 --rounds 2     # a glance

Each contender computes the same thing, the mean gradient of the query loss by the initial theta
after K steps of SGD on the support set, from the same weights on the same rows. It must agree with
the autograd loop to 1e-4 of its norm before anything is timed; the largest difference is printed.

- *ours*: the estimators ``Unrolled`` and ``FirstOrder`` with the rule ``SGD`` and a learned initial
  theta, as ``EvolvingClassifier`` calls them.
- *autograd*: 15 lines of ``torch.autograd.grad`` and ``functional_call``, a backward pass a task.
- *learn2learn* ``MAML``, *higher* ``innerloop_ctx``, *TorchOpt* ``MetaSGD`` (second order only: it
  always makes the graph), as their documentation uses them.

Ours brings its own LSTM for second order; the others run ``nn.LSTM``. For honesty *autograd, cell*
is the loop over a plain LSTM cell written in Python, which one would write by hand.

They take turns, a meta-step each a round, in one process on one thread; the tables give medians of
CPU seconds, and ratios within a round with their 95% intervals. Peak memory is that of all tensors,
workspaces of kernels included, that torch's allocator gave out during a meta-step beyond what was
there before it, from the profiler's record of every allocation.

The peers are not installed with this package: learn2learn 0.2.0 does not build under Python 3.11
and asks for an old gym. What is not importable is left out with a line. To have all three, in a
folder of their own beside our packages:

    pip install --no-deps --target peers higher torchopt optree graphviz
    pip download --no-deps --no-binary :all: --no-build-isolation learn2learn   # needs cython<3
    tar xzf learn2learn-0.2.0.tar.gz && cp -r learn2learn-0.2.0/learn2learn peers/
    PYTHONPATH=peers python benchmarks/meta_step.py
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import time
import types
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from lightning_evolve.estimators import Episode, FirstOrder, Unrolled
from lightning_evolve.inner_loop import Adapted
from lightning_evolve.learners import BERT, LSTM
from lightning_evolve.learners.base import Learner
from lightning_evolve.learners.lstm import masked_mean
from lightning_evolve.meta_learners import SGD
from lightning_evolve.rewards import NegativeLoss
from lightning_evolve.tasks import Batch, DataSpec, Task

ALPHA, WAYS, VOCABULARY, TOKENS = 0.01, 5, 2000, 32
SMALL_BERT = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
}
TEXT, IMAGES = DataSpec(WAYS, VOCABULARY), DataSpec(WAYS, shape=(1, 28, 28))


class CNN4(Learner):
    """Four blocks of 3x3 convolution, batch normalisation, ReLU and pooling (Finn et al. 2017)."""

    def __init__(self, spec: DataSpec, channels: int = 32) -> None:
        super().__init__(spec)
        widths = (spec.shape[0], *[channels] * 4)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, padding=1),
                    nn.BatchNorm2d(after, track_running_stats=False),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                )
                for before, after in pairwise(widths)
            )
        )
        self.head = nn.Linear(channels, spec.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images."""
        return self.head(self.blocks(images).flatten(1))


class KernelLSTM(LSTM):
    """Our LSTM by ``nn.LSTM`` alone, which also finds weights that a library put in by name."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Classifies texts."""
        self.lstm._flat_weights = [getattr(self.lstm, n) for n in self.lstm._flat_weights_names]
        hidden = self.lstm(self.embedding(input_ids))[0]
        return self.head(masked_mean(hidden, attention_mask))


class CellLSTM(LSTM):
    """The same by a cell of plain operations in a loop over time."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Classifies texts."""
        w_ih, w_hh, b_ih, b_hh = (getattr(self.lstm, n) for n in self.lstm._flat_weights_names)
        projected = functional.linear(self.embedding(input_ids), w_ih, b_ih + b_hh)
        hidden = cell = projected.new_zeros(len(projected), self.lstm.hidden_size)
        states = []
        for step in projected.unbind(1):
            take, keep, new, show = (step + functional.linear(hidden, w_hh)).chunk(4, 1)
            cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
            hidden = show.sigmoid() * cell.tanh()
            states.append(hidden)
        return self.head(masked_mean(torch.stack(states, 1), attention_mask))


class Setting(NamedTuple):
    """A learner as ours, as the others run it, and as one would write it by hand."""

    ours: Callable[[DataSpec], Learner]
    theirs: Callable[[DataSpec], Learner]
    by_hand: Callable[[DataSpec], Learner] | None
    spec: DataSpec


_BERT = partial(BERT, config=SMALL_BERT)
SETTINGS = {
    "cnn": Setting(CNN4, CNN4, None, IMAGES),
    "lstm": Setting(LSTM, KernelLSTM, CellLSTM, TEXT),
    "bert": Setting(_BERT, _BERT, None, TEXT),
}


def draw(spec: DataSpec, tasks: int, shots: int) -> list[Task]:
    """Returns random tasks with as many query rows as support rows."""
    source = torch.Generator().manual_seed(0)

    def batch() -> Batch:
        labels = torch.arange(WAYS).repeat(shots)
        rows = len(labels)
        if spec.shape:
            values = torch.rand(rows, *spec.shape, generator=source)
            return Batch({"images" if len(spec.shape) > 1 else "features": values}, labels, labels)
        ids = torch.randint(1, VOCABULARY, (rows, TOKENS), generator=source)
        return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels, labels)

    return [Task((batch(),), batch(), index) for index in range(tasks)]


def loss_of(predictions: Tensor, batch: Batch) -> Tensor:
    """Returns the mean cross-entropy."""
    return functional.cross_entropy(predictions, batch.labels)


Gradients = dict[str, Tensor]


def ours(learner: Learner, tasks: list[Task], steps: int, second: bool) -> Gradients:
    """Runs our estimators."""
    theta = dict(learner.named_parameters())
    rule, estimator = SGD(theta), Unrolled() if second else FirstOrder()
    start, totals = Adapted(theta, rule.init(theta)), None
    for task in tasks:
        episode = Episode(learner, rule, start, task, ALPHA, steps, NegativeLoss(), (steps,))
        found = list(estimator(episode).theta.values())
        if totals:
            torch._foreach_add_(totals, found)
        totals = totals or found
    torch._foreach_div_(totals, -len(tasks))
    return dict(zip(theta, totals, strict=True))


def autograd(learner: Learner, tasks: list[Task], steps: int, second: bool) -> Gradients:
    """Runs the loop that one would write by hand."""
    initial = dict(learner.named_parameters())
    for task in tasks:
        theta, support = initial, task.support[0]
        for _ in range(steps):
            loss = loss_of(functional_call(learner, theta, (), support.inputs), support)
            grads = torch.autograd.grad(loss, list(theta.values()), create_graph=second)
            theta = {n: p - ALPHA * g for (n, p), g in zip(theta.items(), grads, strict=True)}
        loss = loss_of(functional_call(learner, theta, (), task.query.inputs), task.query)
        (loss / len(tasks)).backward()
    return collected(learner)


def learn2learn(learner: Learner, tasks: list[Task], steps: int, second: bool) -> Gradients:
    """Runs learn2learn's MAML."""
    from learn2learn.algorithms.maml import MAML

    maml = MAML(learner, lr=ALPHA, first_order=not second)
    for task in tasks:
        clone, support = maml.clone(), task.support[0]
        for _ in range(steps):
            clone.adapt(loss_of(clone(**support.inputs), support))
        (loss_of(clone(**task.query.inputs), task.query) / len(tasks)).backward()
    return collected(learner)


def higher(learner: Learner, tasks: list[Task], steps: int, second: bool) -> Gradients:
    """Runs higher; its first order is the gradient at the adapted theta."""
    import higher

    optimizer = torch.optim.SGD(learner.parameters(), lr=ALPHA)
    for task in tasks:
        support = task.support[0]
        context = higher.innerloop_ctx(
            learner, optimizer, copy_initial_weights=False, track_higher_grads=second
        )
        with context as (functional_learner, inner):
            for _ in range(steps):
                inner.step(loss_of(functional_learner(**support.inputs), support))
            loss = loss_of(functional_learner(**task.query.inputs), task.query) / len(tasks)
            if second:
                loss.backward()
                continue
            last = torch.autograd.grad(loss, list(functional_learner.parameters()))
            for p, g in zip(learner.parameters(), last, strict=True):
                p.grad = g if p.grad is None else p.grad.add_(g)
    return collected(learner)


def torchopt(learner: Learner, tasks: list[Task], steps: int, second: bool) -> Gradients:
    """Runs TorchOpt's MetaSGD."""
    import torchopt

    optimizer = torchopt.MetaSGD(learner, lr=ALPHA)
    before = [torchopt.extract_state_dict(part, by="reference") for part in (learner, optimizer)]
    parameters = list(learner.named_parameters())
    for task in tasks:
        support = task.support[0]
        for _ in range(steps):
            optimizer.step(loss_of(learner(**support.inputs), support))
        (loss_of(learner(**task.query.inputs), task.query) / len(tasks)).backward()
        for part, state in zip((learner, optimizer), before, strict=True):
            torchopt.recover_state_dict(part, state)
    return {name: p.grad for name, p in parameters}


def collected(learner: Learner) -> Gradients:
    """Returns what backward passes have left."""
    return {name: p.grad for name, p in learner.named_parameters()}


def importable(peer: str) -> bool:
    """Whether a peer is there; readies learn2learn, of which only the files of MAML can load."""
    if peer in sys.modules:
        return True
    found = importlib.util.find_spec(peer)
    if peer == "learn2learn" and found:
        folder = Path(found.origin).parent
        for name, path in ((peer, folder), (f"{peer}.algorithms", folder / "algorithms")):
            sys.modules[name] = package = types.ModuleType(name)
            package.__path__ = [str(path)]
    return found is not None


def contenders(setting: Setting, second: bool) -> dict[str, Callable[[], Gradients]]:
    """Returns one function a contender, each with a learner of its own of the same weights.

    Args:
        setting: which learner.
        second: whether exact gradients are asked for.
    """

    def built(factory: Callable[[DataSpec], Learner]) -> Learner:
        torch.manual_seed(0)
        # What the engine tells learners that have an implementation for it.
        learner = factory(setting.spec)
        learner.second_order = second
        return learner

    found = {"ours": partial(ours, built(setting.ours))}
    found["autograd"] = partial(autograd, built(setting.theirs))
    if setting.by_hand:
        found["autograd, cell"] = partial(autograd, built(setting.by_hand))
    for peer in (learn2learn, higher, torchopt):
        if importable(peer.__name__) and (second or peer is not torchopt):
            found[peer.__name__] = partial(peer, built(setting.theirs))
    return found


def peak_bytes(step: Callable[[], object]) -> int:
    """Returns the most memory that was given out at once while a function ran."""
    with silence(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(np.cumsum(sizes).max())


@contextlib.contextmanager
def silence():
    """Keeps the profiler's own lines off the screen."""
    with open(os.devnull, "w") as nowhere:
        saved = [os.dup(n) for n in (1, 2)]
        for n in (1, 2):
            os.dup2(nowhere.fileno(), n)
        try:
            yield
        finally:
            for n, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, n)
                os.close(copy)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Returns the median with its 95% interval by bootstrap."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def measure(name: str, order: str, given: argparse.Namespace) -> Table:
    """Checks, times and weighs all contenders on one learner.

    Args:
        name: of the setting.
        order: ``"second"`` or ``"first"``.
        given: the command line.

    Returns:
        The table to print.
    """
    setting = SETTINGS[name]
    tasks = draw(setting.spec, given.tasks, given.shots)

    def step(contender: Callable[..., Gradients]) -> Gradients:
        learner = contender.args[0]
        learner.zero_grad()
        return contender(tasks, given.steps, order == "second")

    playing = contenders(setting, order == "second")
    apart = {}
    for contender, play in playing.items():
        apart[contender] = {n: g.clone() for n, g in step(play).items()}
    truth = apart["autograd"]
    norm = torch.stack([g.norm() for g in truth.values()]).norm()
    for contender, found in apart.items():
        gone = torch.stack([(g - truth[n]).norm() for n, g in found.items()]).norm() / norm
        if not gone <= 1e-4:
            sys.exit(f"{name}, {order} order: {contender} is {float(gone):.1e} off the truth")
        apart[contender] = float(gone)
    peaks = {contender: peak_bytes(partial(step, play)) for contender, play in playing.items()}
    seconds: dict[str, list[float]] = {contender: [] for contender in playing}
    order_of_play = list(playing)
    for _ in range(given.rounds):
        for contender in order_of_play:
            began = time.process_time()
            step(playing[contender])
            seconds[contender].append(time.process_time() - began)
        order_of_play.append(order_of_play.pop(0))
    table = Table(title=f"{name}, {order} order, {given.steps} inner steps", box=box.SIMPLE_HEAD)
    for heading in ("", "tasks/CPU s", "ours over it", "95% interval", "peak MiB", "difference"):
        table.add_column(heading, justify="right" if heading else "left")
    for contender, times in seconds.items():
        ratios = np.array(times) / np.array(seconds["ours"])
        middle, low, high = interval(ratios)
        table.add_row(
            contender,
            f"{given.tasks / np.median(times):.2f}",
            f"{middle:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{peaks[contender] / 2**20:.0f}",
            f"{apart[contender]:.0e}",
        )
    return table


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learners", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    orders = ["second", "first"]
    parser.add_argument("--orders", nargs="+", choices=orders, default=orders)
    parser.add_argument("--rounds", type=int, default=12, help="of turns (default: 12)")
    parser.add_argument("--tasks", type=int, default=8, help="of a meta-step (default: 8)")
    parser.add_argument("--steps", type=int, default=5, help="inner steps (default: 5)")
    parser.add_argument("--shots", type=int, default=5, help="rows a class (default: 5)")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("--rounds must be at least 2 for an interval")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for peer in (learn2learn, higher, torchopt):
        if not importable(peer.__name__):
            print(f"{peer.__name__} is not installed and left out; the head of this file says how")
    for order in given.orders:
        for name in given.learners:
            Console().print(measure(name, order, given))


if __name__ == "__main__":
    main()
