"""Trainers that cannot train an EvolvingClassifier are refused in a sentence, before anything."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from lightning_evolve.data import Pixels
from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import EvolutionStrategies, FirstOrder, Unrolled
from lightning_evolve.learners import CNN
from lightning_evolve.modules import Classifier
from lightning_evolve.modules.compatibility import check_precision, check_strategy
from lightning_evolve.streams import BatchStream
from tests.modules.small import module, stream, trainer


def refusal(tmp_path, model=None, **options):
    """What a fit says before it has built anything."""
    model = module() if model is None else model
    with pytest.raises(UsageError) as caught:
        trainer(tmp_path, max_steps=1, **options).fit(model, datamodule=stream())
    assert not hasattr(getattr(model, "_orig_mod", model), "learner"), "nothing is built by then"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true"])
def test_numbers_with_too_few_digits_are_refused(tmp_path, precision):
    half = (
        # Lightning takes bf16-mixed for 16-mixed where there is only a CPU.
        MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
        if precision == "16-mixed"
        else HalfPrecision(precision)
    )
    message = refusal(tmp_path, plugins=[half])
    assert repr(precision) in message
    assert "--trainer.precision bf16-mixed" in message


@pytest.mark.parametrize("precision", ["transformer-engine", "transformer-engine-float16", "nf4"])
def test_numbers_that_nobody_has_tried_are_refused(precision):
    with pytest.raises(UsageError, match=f"'{precision}'.*--trainer.precision bf16-mixed"):
        check_precision(precision)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_adapts_and_refuses_them_too(tmp_path, command):
    t = trainer(tmp_path, plugins=[HalfPrecision("bf16-true")])
    with pytest.raises(UsageError, match="'bf16-true'"):
        getattr(t, command)(module(), datamodule=stream())


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_the_plain_classifier_takes_what_lightning_offers(tmp_path, precision):
    """Its one optimizer steps theta itself; nothing of ours stands in the way."""
    data = BatchStream(source="digits", classes=["3", "8"], encoder=Pixels(size=8), batch_size=8)
    model = Classifier(partial(CNN, channels=(3, 4)))
    t = trainer(tmp_path, max_steps=2, plugins=[HalfPrecision(precision)])
    t.fit(model, datamodule=data)
    assert (
        model.learner.head.weight.dtype
        == {"16": torch.half, "bf16": torch.bfloat16}[precision.removesuffix("-true")]
    )


def unbuilt(kind):
    """A strategy that has not asked its machine for anything: some need packages or a GPU."""
    return kind.__new__(kind)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
@pytest.mark.parametrize(
    ("estimator", "fault"),
    [
        (Unrolled(), "Unrolled takes second derivatives"),
        (FirstOrder(), "needs all of it"),
        (EvolutionStrategies(), "needs all of it"),
    ],
)
def test_a_sharded_theta_is_refused(strategy, estimator, fault):
    with pytest.raises(UsageError, match=f"{strategy.__name__} leaves .*{fault}.* FirstOrder"):
        check_strategy(unbuilt(strategy), estimator)


@pytest.mark.parametrize("estimator", [Unrolled(), FirstOrder(), EvolutionStrategies()])
def test_deepspeed_is_refused_and_ddp_is_not(estimator):
    with pytest.raises(UsageError, match="DeepSpeedStrategy owns the optimizers"):
        check_strategy(unbuilt(DeepSpeedStrategy), estimator)
    check_strategy(unbuilt(DDPStrategy), estimator)
    check_strategy(unbuilt(SingleDeviceStrategy), estimator)


def test_a_sharded_strategy_is_refused_by_a_fit(tmp_path, monkeypatch):
    t = trainer(tmp_path, max_steps=1)
    monkeypatch.setattr("lightning_evolve.modules.compatibility._SHARDED", (type(t.strategy),))
    with pytest.raises(UsageError, match="takes second derivatives"):
        t.fit(module(), datamodule=stream())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip_val": 0.5}, r"gradient_clip_val is 0\.5 .*--model\.clip"),
        ({"accumulate_grad_batches": 2}, r"grad_batches is 2 .* 2 times .*tasks_per_step"),
    ],
)
def test_settings_of_automatic_optimization_are_refused_by_our_names(tmp_path, options, message):
    assert re.search(message, refusal(tmp_path, **options))
    # In evaluation they have nothing to do.
    trainer(tmp_path, **options).validate(module(), datamodule=stream(), verbose=False)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (StochasticWeightAveraging(swa_lrs=1e-2), "--model.beta_schedule"),
        (GradientAccumulationScheduler({0: 2}), "--data.tasks_per_step"),
    ],
)
def test_callbacks_of_automatic_optimization_are_refused(tmp_path, callback, message):
    said = refusal(tmp_path, callbacks=[callback])
    assert said.startswith(type(callback).__name__)
    assert message in said


def test_other_callbacks_are_not(tmp_path):
    stop = EarlyStopping("train/loss", check_on_train_epoch_end=True)
    trainer(tmp_path, max_steps=1, callbacks=[stop]).fit(module(), datamodule=stream())


def test_a_compiled_lightning_module_is_refused(tmp_path):
    assert "--model.compile true" in refusal(tmp_path, torch.compile(module()))
