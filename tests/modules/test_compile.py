"""compile: true gives the same numbers, and is refused where it cannot.

``EXHAUSTIVE=1 pytest tests/modules/test_compile.py`` takes every estimator, precision and learner:
minutes of compiling, for which the suite has no time.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch._dynamo.utils import counters

from lightning_evolve.compilation import check_compiler, compile_learner
from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import EvolutionStrategies, FirstOrder, Unrolled
from lightning_evolve.inner_loop import adapt, detached
from lightning_evolve.learners import BERT, CNN, LSTM, Head
from lightning_evolve.meta_learners import SGD
from lightning_evolve.modules import Classifier
from lightning_evolve.streams import BatchStream
from lightning_evolve.tasks import Batch, DataSpec, Task
from tests.modules.small import FlatPixels, Keep, difference, module, stream, trainer

TEXT, FEATURES = DataSpec(2, vocab_size=11), DataSpec(2, shape=(5,))
HEAD = partial(Head, hidden_size=4)
exhaustive = pytest.mark.skipif(
    "EXHAUSTIVE" not in os.environ, reason="compiles for minutes; set EXHAUSTIVE=1 to run it"
)


@pytest.fixture(autouse=True)
def compiled_anew():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def run(folder, cls=module, make_stream=stream, processes=1, ckpt_path=None, **options):
    """A fit of the smallest learner; gives what it ends on."""
    folder.mkdir(exist_ok=True)
    trained = {"max_steps": 6, "callbacks": [Keep(folder)], "devices": processes}
    for name in ("precision", "max_steps"):
        if name in options:
            trained[name] = options.pop(name)
    if processes > 1:
        trained["strategy"] = DDPStrategy(start_method="fork", process_group_backend="gloo")
    model = cls(learner=HEAD, **options)
    data = make_stream(encoder=FlatPixels(size=8), steps_per_epoch=3)
    data.setup()
    t = trainer(folder, **trained)
    t.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    if processes == 1:
        t.save_checkpoint(folder / "last.ckpt")
    return torch.load(folder / "rank0.pt", weights_only=True)


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "precision"),
    [
        (FirstOrder(), "32-true"),
        pytest.param(EvolutionStrategies(), "32-true", marks=exhaustive),
        *(
            pytest.param(estimator, precision, marks=exhaustive)
            for estimator in (FirstOrder(), EvolutionStrategies())
            for precision in ("64-true", "bf16-mixed")
        ),
    ],
)
def test_the_numbers_are_the_same(tmp_path, estimator, precision):
    """Training, validation, phi, the persistent theta and the rule's state."""
    options = dict(estimator=estimator, theta="persistent", precision=precision)
    plain = run(tmp_path / "plain", **options)
    assert graphs() == 0
    compiled = run(tmp_path / "compiled", compile=True, **options)
    assert 0 < graphs() <= 8, "it was compiled, and not for each step anew"
    if precision == "bf16-mixed":
        # Rounded differently, a row may fall on the other side, and then count as a whole one.
        for name in [n for n in plain if n.startswith("val/") and "loss" not in n]:
            del plain[name], compiled[name]
    tolerance = {"32-true": 1e-5, "64-true": 1e-12, "bf16-mixed": 3e-2}[precision]
    assert difference(plain, compiled) < tolerance
    moved = (plain["meta_learner.log_gains"]).abs().max()
    assert moved > 0.05, "phi has learned"


@pytest.mark.slow
def test_a_run_goes_on_compiled_or_not(tmp_path):
    options = dict(estimator=FirstOrder(), theta="persistent")
    whole = run(tmp_path / "whole", max_steps=6, **options)
    for first, second in ((True, False), (False, True)):
        folder = tmp_path / f"first{first}"
        run(folder, max_steps=3, compile=first, **options)
        keys = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"].keys()
        assert "learner.head.weight" in keys
        end = run(
            tmp_path / f"second{second}{first}",
            max_steps=6,
            ckpt_path=folder / "last.ckpt",
            compile=second,
            **options,
        )
        assert difference(whole, end) < 1e-5


@pytest.mark.slow
def test_two_processes_compile_and_end_where_one_does(tmp_path):
    options = dict(estimator=FirstOrder(), theta="persistent", compile=True)
    one = run(tmp_path / "one", **options)
    two = run(tmp_path / "two", processes=2, **options)
    assert difference(one, two) < 1e-5


@pytest.mark.slow
def test_the_plain_classifier_compiles_too(tmp_path):
    ends = []
    for compile_it in (False, True):
        data = BatchStream(source="digits", encoder=FlatPixels(size=8), batch_size=8)
        model = Classifier(HEAD, compile=compile_it)
        t = trainer(tmp_path, max_steps=5, val_check_interval=3)
        t.fit(model, datamodule=data)
        ends.append({**model.state_dict(), "loss": t.callback_metrics["val/loss"]})
        assert (graphs() > 0) == compile_it
    assert difference(*ends) < 1e-5


@pytest.mark.slow
def test_batches_of_any_size_run(tmp_path):
    """Support, query, the last batch of a split, a single row; with and without a gradient."""
    learner, plain = HEAD(FEATURES), HEAD(FEATURES)
    plain.load_state_dict(learner.state_dict())
    compile_learner(learner)
    for rows in (6, 9, 4, 1, 6, 2, 17, 6):
        features, labels = torch.rand(rows, 5), torch.arange(rows) % 2
        batch = Batch({"features": features}, labels, torch.arange(rows))
        ends = []
        for one in (learner, plain):
            theta = detached(dict(one.named_parameters()))
            task = Task((batch,), batch)
            ends.append(adapt(one, SGD(theta), theta, task, alpha=0.1, steps=2).theta)
            with torch.inference_mode():
                ends[-1]["logits"] = one(features)
        assert difference(*ends) < 1e-5
    assert graphs() <= 8


def test_second_order_is_refused():
    with pytest.raises(UsageError, match="Unrolled: compiled code cannot be differentiated twice"):
        module(estimator=Unrolled(), compile=True)


@pytest.mark.slow
def test_second_order_would_fail(tmp_path):
    """The reason for the refusal: where this passes one day, the refusal can go."""
    model = module(learner=HEAD)
    model.compiled = True
    with pytest.raises(RuntimeError, match=r"create_graph=False|double backward"):
        trainer(tmp_path, max_steps=1).fit(
            model, datamodule=stream(encoder=FlatPixels(size=8), steps_per_epoch=1)
        )


def test_a_machine_without_a_compiler_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = module(estimator=FirstOrder(), compile=True)
    with pytest.raises(UsageError, match=r"needs the C\+\+ compiler no-such-compiler"):
        trainer(tmp_path, max_steps=1).fit(model, datamodule=stream())


def test_a_python_without_headers_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UsageError, match="install python3-dev"):
        check_compiler()


def test_a_learner_that_gains_nothing_is_named():
    with pytest.warns(UserWarning, match="next to nothing for LSTM"):
        compile_learner(LSTM(TEXT, embedding_size=2, hidden_size=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_learner(CNN(DataSpec(2, shape=(1, 8, 8)), channels=(1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lstm", *(pytest.param(name, marks=exhaustive) for name in ("cnn", "bert"))]
)
@pytest.mark.filterwarnings("ignore:compile. true does next to nothing")
def test_every_learner_gives_the_same_gradients(name):
    tiny = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    make = {
        "cnn": lambda: CNN(DataSpec(2, shape=(1, 8, 8)), channels=(2, 2)),
        "bert": lambda: BERT(TEXT, config=tiny),
        "lstm": lambda: LSTM(TEXT, embedding_size=3, hidden_size=3),
    }[name]
    learner, plain = make(), make()
    plain.load_state_dict(learner.state_dict())
    compile_learner(learner)
    for _ in range(2):
        rows = 4
        ids = torch.randint(1, 11, (rows, 6))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if name == "cnn":
            inputs = {"images": torch.rand(rows, 1, 8, 8)}
        batch = Batch(inputs, torch.arange(rows) % 2, torch.arange(rows))
        ends = []
        for one in (learner, plain):
            theta = detached(dict(one.named_parameters()))
            task = Task((batch,), batch)
            ends.append(adapt(one, SGD(theta), theta, task, alpha=0.1, steps=3).theta)
        assert difference(*ends) < 1e-5
