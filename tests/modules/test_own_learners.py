"""Learners of the user's own: what they ask for is heeded, and what cannot work is said."""

from __future__ import annotations

import json
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn

from lightning_evolve.callbacks.comparison import Comparison
from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import Estimator, EvolutionStrategies, Unrolled
from lightning_evolve.learners import Learner
from lightning_evolve.modules import Classifier, EvolvingClassifier
from lightning_evolve.modules.building import adapting, build
from lightning_evolve.rewards import Reward
from lightning_evolve.tasks import DataSpec
from tests.modules.small import difference, module, stream, trainer

SPEC = DataSpec(num_classes=3, shape=(1, 8, 8))


class Own(Learner):
    """Two layers; frozen, tied, with dropout or with running statistics on request."""

    first_layer = "stem"

    def __init__(self, spec, *, freeze=False, tie=False, drop=0.0, norm=False):
        super().__init__(spec)
        self.stem = nn.Linear(64, 3 if tie else 8)
        self.norm = nn.BatchNorm1d(3 if tie else 8, track_running_stats=norm)
        self.drop = nn.Dropout(drop)
        self.middle = nn.Linear(3, 3) if tie else nn.Identity()
        self.head = nn.Linear(3 if tie else 8, 3)
        if tie:
            self.head.weight = self.middle.weight
        if freeze:
            self.stem.requires_grad_(False)

    def forward(self, images):
        return self.head(self.middle(self.drop(self.norm(self.stem(images.flatten(1)).tanh()))))


def test_what_a_learner_froze_stays_frozen_unless_it_is_named(tmp_path):
    frozen = {"stem.weight", "stem.bias"}
    evolving = module(learner=partial(Own, freeze=True), learn_init=True)
    evolving.build(SPEC)
    assert not frozen & evolving.theta().keys()
    assert not frozen & evolving.learned_init().keys()
    assert "head.weight" in evolving.theta()
    plain = Classifier(partial(Own, freeze=True))
    plain.build(DataSpec(num_classes=3, shape=(1, 8, 8), class_names=("a", "b", "c")))
    assert not plain.learner.stem.weight.requires_grad
    named = adapting(build(partial(Own, freeze=True), SPEC, 0), ["stem.*"])
    assert named.keys() == frozen


def test_a_tied_parameter_answers_to_both_names():
    learner = build(partial(Own, tie=True), SPEC, 0)
    assert list(adapting(learner, ["head"])) == ["middle.weight", "head.bias"]
    assert "middle.weight" not in adapting(learner, ["all", "!head"])


def test_running_statistics_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"norm of Own is a BatchNorm1d .*track_running_stats="):
        module(learner=partial(Own, norm=True)).build(SPEC)
    module(learner=Own).build(SPEC)


def test_a_plain_module_is_no_learner():
    with pytest.raises(UsageError, match=r"Linear is no learner; derive it from"):
        module(learner=lambda spec: nn.Linear(2, 2)).build(SPEC)


@pytest.mark.parametrize("estimator", [Unrolled(checkpoint=1), EvolutionStrategies()])
def test_with_dropout_a_run_goes_on_as_if_it_had_not_stopped(tmp_path, estimator):
    options = dict(learner=partial(Own, drop=0.3), estimator=estimator, steps=3)

    def run(folder, seed, steps, path=None):
        torch.manual_seed(seed)
        m, t = module(**options), trainer(folder, max_steps=steps, limit_val_batches=0)
        t.fit(m, datamodule=stream(), ckpt_path=path, weights_only=path and True)
        t.save_checkpoint(folder / "c.ckpt")
        return m.state_dict()

    for name in ("whole", "half"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole", 0, 6)
    run(tmp_path / "half", 1, 3)
    assert difference(whole, run(tmp_path / "half", 2, 6, tmp_path / "half" / "c.ckpt")) == 0


def test_the_table_of_fit_is_that_of_test(tmp_path):
    """In training, dropout would be on in it."""
    m, s = module(learner=partial(Own, drop=0.5)), stream()
    table = [Comparison(rivals=["sgd"], tuning_tasks=2)]
    t = trainer(tmp_path, max_steps=2, limit_val_batches=0, callbacks=table)
    t.fit(m, datamodule=s)
    t.test(m, datamodule=s, verbose=False)
    fit, test = (json.loads((tmp_path / f"results{n}.json").read_text()) for n in ("", "-2"))
    assert fit["rows"] == test["rows"]


def test_a_comparison_that_there_is_none_of_is_refused_before_training(tmp_path):
    class Other(EvolvingClassifier):
        def training_step(self, batch, batch_idx):
            raise AssertionError("training has begun")

    class Bare(L.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.own = stream()
            self.own.setup()
            self.spec = self.own.spec

        def train_dataloader(self):
            return self.own.train_dataloader()

    t = trainer(tmp_path, max_steps=1, limit_val_batches=0, callbacks=[Comparison()])
    with pytest.raises(UsageError, match=r"no comparison for Other on Bare; give --comparison"):
        t.fit(module(Other), datamodule=Bare())


def test_a_model_is_not_fitted_to_data_of_another_kind(tmp_path):
    m = module()
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(m, datamodule=stream())
    with pytest.raises(UsageError, match="has classes of a task 2, and the model was built for 3"):
        trainer(tmp_path, max_steps=1).fit(m, datamodule=stream(ways=2))


@pytest.mark.parametrize("first", ["test", "validate"])
def test_a_model_that_was_scored_can_be_trained(tmp_path, first):
    """Lightning scores under inference mode by default."""
    m, s = module(), stream()
    getattr(trainer(tmp_path, max_steps=1), first)(m, datamodule=s, verbose=False)
    t = trainer(tmp_path, max_steps=2, val_check_interval=1)
    t.fit(m, datamodule=s)
    assert t.callback_metrics["val/reward"].isfinite()


class Rows(Reward):
    differentiable = True

    def __call__(self, logits, labels):
        return -nn.functional.cross_entropy(logits, labels, reduction="none")


class Number(Reward):
    def __call__(self, logits, labels):
        return float(logits.mean())


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (Rows(), r"Rows gives a tensor of shape \[9\]; return a tensor with one"),
        (Number(), "Number"),
    ],
)
def test_a_reward_is_one_number(tmp_path, reward, said):
    m = module(reward=reward, estimator=EvolutionStrategies())
    with pytest.raises(UsageError, match=said):
        trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(m, datamodule=stream())


def test_an_estimator_needs_no_checks_of_its_own(tmp_path):
    class Still(Estimator):
        def __call__(self, episode):
            return Unrolled()(episode)

    m = module(estimator=Still())
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(m, datamodule=stream())
    assert any(bool(p.abs().sum() > 0) for p in m.meta_learner.phi().values())
