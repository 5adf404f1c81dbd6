from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_evolve.errors import UsageError
from lightning_evolve.learners import LSTM
from lightning_evolve.learners.lstm import masked_mean, unroll
from lightning_evolve.tasks import DataSpec

SPEC = DataSpec(num_classes=3, vocab_size=20)


def test_loop_is_the_lstm() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(6, 5, batch_first=True).double()
    inputs = torch.randn(4, 7, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 7, 5, dtype=torch.float64)
    results = []
    for states in (lstm(inputs)[0], unroll(lstm, inputs)):
        gradients = torch.autograd.grad((states * weights).sum(), [inputs, *lstm.parameters()])
        results.append((states, *gradients))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-12)


def test_loop_is_twice_differentiable() -> None:
    torch.manual_seed(0)
    learner = LSTM(DataSpec(2, vocab_size=5), embedding_size=2, hidden_size=2).double()
    learner.second_order = True
    names = [name for name, _ in learner.named_parameters()]
    ids = torch.tensor([[1, 2, 3], [4, 2, 0]])

    def logits(*values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return functional_call(learner, parameters, (ids, (ids != 0).long()))

    values = tuple(p.detach().clone().requires_grad_() for p in learner.parameters())
    assert torch.autograd.gradcheck(logits, values)
    assert torch.autograd.gradgradcheck(logits, values)


@pytest.mark.parametrize("second_order", [False, True])
def test_the_engine_chooses_the_implementation(second_order: bool) -> None:
    learner = LSTM(SPEC, embedding_size=4, hidden_size=4)
    learner.second_order = second_order
    calls = []
    learner.lstm.register_forward_hook(lambda *_: calls.append(1))
    learner(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long))
    assert bool(calls) is not second_order


@pytest.mark.parametrize("second_order", [False, True])
def test_padding_changes_nothing(second_order: bool) -> None:
    torch.manual_seed(0)
    learner = LSTM(SPEC, embedding_size=4, hidden_size=4)
    learner.second_order = second_order
    ids = torch.tensor([[3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 1, 2]])
    mask = (ids != 0).long()
    garbage = torch.where(mask == 0, 13, ids)
    torch.testing.assert_close(learner(garbage, mask), learner(ids, mask))
    torch.testing.assert_close(learner(ids[:1, :3], mask[:1, :3]), learner(ids[:1], mask[:1]))
    assert not torch.allclose(learner(garbage, torch.ones_like(mask)), learner(ids, mask))


def test_mean_of_a_row_without_tokens_is_zero() -> None:
    mask = torch.tensor([[False, False], [True, False]])
    means = masked_mean(torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]]), mask)
    torch.testing.assert_close(means, torch.tensor([[0.0], [5.0]]))


@pytest.mark.parametrize("size", ["embedding_size", "hidden_size"])
def test_sizes_are_positive(size: str) -> None:
    with pytest.raises(UsageError, match=f"{size} of LSTM is 0"):
        LSTM(SPEC, **{size: 0})


def test_defaults_are_the_documented_ones() -> None:
    learner = LSTM(SPEC)
    assert learner.embedding.weight.shape == (20, 128)
    assert learner.lstm.weight_hh_l0.shape == (4 * 128, 128)
    assert not learner.embedding.weight[0].any()
