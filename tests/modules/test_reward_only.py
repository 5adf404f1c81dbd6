"""Accuracy, which has no gradient, is all that a rule needs to learn from."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch

from lightning_evolve.estimators import ActorCritic
from lightning_evolve.evaluation.statistics import interval
from lightning_evolve.learners import CNN
from lightning_evolve.meta_learners import Controller
from lightning_evolve.rewards import Accuracy
from tests.modules.small import module, stream, trainer


@pytest.mark.slow
def test_a_policy_gradient_on_accuracy_raises_that_of_held_out_tasks(tmp_path):
    L.seed_everything(0)
    model = module(
        learner=partial(CNN, channels=(4, 8)),
        meta_learner=partial(Controller, horizon=5, spread=0.3),
        estimator=ActorCritic(),
        reward=Accuracy(),
        alpha=0.02,
        steps=5,
    )
    data = stream(shots=5, queries=15)
    data.setup()
    model.build(data.spec)
    tasks = data.tasks("test", 100)

    def accuracies():
        scored = [(model.adapted_logits(task)[0], task.query.labels) for task in tasks]
        return torch.tensor([float((p.argmax(dim=-1) == y).float().mean()) for p, y in scored])

    before = accuracies()
    trainer(tmp_path, max_steps=50, limit_val_batches=0).fit(model, datamodule=data)
    gain = interval(accuracies() - before)
    assert gain["low"] > 0.05, gain
