"""Metrics that a learner which diverged cannot hide from."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_evolve.modules.metrics import FamilyMetrics, PerTaskMetrics, PooledMetrics

LABELS = torch.tensor([0, 1])
RIGHT = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
NAN = torch.full((2, 2), math.nan)


@pytest.mark.parametrize("kind", [PooledMetrics, PerTaskMetrics])
def test_a_loss_that_is_nan_makes_the_mean_nan(kind):
    metrics = kind(2, "val/")
    metrics.update(RIGHT, LABELS)
    assert metrics.compute()["val/loss"] < 0.01
    metrics.update(NAN, LABELS)
    assert metrics.compute()["val/loss"].isnan()


def test_a_family_that_diverged_counts_and_one_without_tasks_does_not():
    metrics = FamilyMetrics({"a": 2, "b": 2, "c": 2}, "val/")
    metrics.update("a", RIGHT, LABELS, torch.tensor(1.0))
    found = metrics.compute()
    assert found["val/accuracy"] == 1
    assert "val/b/loss" not in found
    metrics.update("b", NAN, LABELS, torch.tensor(math.nan))
    found = metrics.compute()
    assert found["val/loss"].isnan()
    assert found["val/b/loss"].isnan()
    assert found["val/accuracy"] < 1
    assert "val/c/loss" not in found
    metrics.reset()
    assert metrics.compute() == {}
