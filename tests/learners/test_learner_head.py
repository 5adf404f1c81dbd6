from __future__ import annotations

import pytest
import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.learners import Head
from lightning_evolve.tasks import DataSpec

SPEC = DataSpec(num_classes=3, shape=(7,))


def test_one_hidden_layer() -> None:
    torch.manual_seed(0)
    learner = Head(SPEC, hidden_size=6)
    features = torch.randn(5, 7)
    hidden = (features @ learner.hidden.weight.T + learner.hidden.bias).clamp(min=0)
    expected = hidden @ learner.head.weight.T + learner.head.bias
    torch.testing.assert_close(learner(features), expected)
    assert learner.first_layer == "hidden"
    assert Head(SPEC).hidden.out_features == 256


def test_without_a_hidden_layer_it_is_linear() -> None:
    learner = Head(SPEC, hidden_size=0)
    assert set(learner.state_dict()) == {"head.weight", "head.bias"}
    assert learner.first_layer == "head"
    features = torch.randn(5, 7)
    torch.testing.assert_close(learner(features), learner.head(features))


def test_negative_size_is_refused() -> None:
    with pytest.raises(UsageError, match="hidden_size of Head is -1"):
        Head(SPEC, hidden_size=-1)
