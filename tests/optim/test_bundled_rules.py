"""The rules that come with the package."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_evolve import LearnedOptimizer, pretrained
from lightning_evolve.meta_learners import RelativeGains
from lightning_evolve.pretrained import bundled, load_rule


def test_two_come_along_and_are_small():
    assert bundled() == ["general", "text"]
    files = [f for name in bundled() for f in (Path(pretrained.__file__).parent / name).iterdir()]
    assert sum(f.stat().st_size for f in files) < 2**20


@pytest.mark.parametrize("name", ["general", "text"])
def test_one_serves_a_model_that_it_has_never_seen(name):
    rule, config = load_rule(name)
    assert isinstance(rule, RelativeGains)
    assert config["trained_on"]["families"]
    assert all(p.isfinite().all() and p.abs().max() > 0.1 for p in rule.parameters())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 3))
    x = torch.randn(60, 8)
    y = (x @ torch.randn(8, 3)).argmax(dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of roles that a rule has not met
        optimizer = LearnedOptimizer.from_pretrained(model.named_parameters(), name)
    assert optimizer.defaults["lr"] == config["alpha"] == 0.3
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
