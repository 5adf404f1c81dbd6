"""What holds for every learner: names, functional calls, second derivatives, refusals."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_evolve.errors import UsageError
from lightning_evolve.learners import (
    BERT,
    CNN,
    LSTM,
    Conv4,
    Head,
    Learner,
    MetricHead,
    NGramHead,
)
from lightning_evolve.tasks import DataSpec, Tensors

ROWS, WAYS = 3, 2
TEXT = DataSpec(num_classes=WAYS, vocab_size=11)
IMAGES = DataSpec(num_classes=WAYS, shape=(1, 6, 7))
LARGER_IMAGES = DataSpec(num_classes=WAYS, shape=(1, 17, 3))
FEATURES = DataSpec(num_classes=WAYS, shape=(5,))
NGRAMS = DataSpec(num_classes=WAYS, vocab_size=11, shape=(5,))
TINY_BERT = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 8,
}
LEARNERS = {
    "lstm": lambda: LSTM(TEXT, embedding_size=4, hidden_size=5),
    "cnn": lambda: CNN(IMAGES, channels=(3, 4)),
    "conv4": lambda: Conv4(IMAGES, channels=3),
    "conv4_batch": lambda: Conv4(LARGER_IMAGES, channels=3, norm="batch"),
    "conv4_none": lambda: Conv4(IMAGES, channels=8, norm="none"),
    "bert": lambda: BERT(TEXT, config=TINY_BERT),
    "bert_cls": lambda: BERT(TEXT, config=TINY_BERT, pooling="cls"),
    "head": lambda: Head(FEATURES, hidden_size=6),
    "linear": lambda: Head(FEATURES, hidden_size=0),
    "metric": lambda: MetricHead(FEATURES),
    "ngrams": lambda: NGramHead(NGRAMS, embedding_size=3),
}


def inputs_for(learner: Learner) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    if not learner.spec.vocab_size:
        name = "images" if isinstance(learner, CNN | Conv4) else "features"
        shape = (ROWS, *learner.spec.shape)
        return {name: torch.rand(shape, generator=generator, dtype=torch.float64)}
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    if learner.spec.shape:
        weights = torch.rand(mask.shape, generator=generator, dtype=torch.float64) * mask
        ids = torch.stack([torch.randperm(11, generator=generator)[:5] for _ in range(ROWS)])
        return {"input_ids": ids, "weights": weights}
    ids = torch.randint(1, learner.spec.vocab_size, mask.shape, generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture(params=LEARNERS)
def learner(request: pytest.FixtureRequest) -> Learner:
    torch.manual_seed(0)
    learner: Learner = LEARNERS[request.param]().double()
    with torch.no_grad():
        for parameter in learner.parameters():  # BERT starts too flat to show a second derivative
            parameter += 0.3 * torch.randn_like(parameter)
    return learner


def loss(learner: Learner, parameters: Tensors, labels: list[int]) -> Tensor:
    logits = functional_call(learner, parameters, kwargs=inputs_for(learner))
    return nn.functional.cross_entropy(logits, torch.tensor(labels))


def test_names_and_shape(learner: Learner) -> None:
    assert learner(**inputs_for(learner)).shape == (ROWS, WAYS)
    assert isinstance(learner.head, nn.Linear)
    assert learner.head.out_features == WAYS
    first = [n for n, _ in learner.named_parameters() if n.startswith(learner.first_layer + ".")]
    assert first
    assert first[0] == next(n for n, _ in learner.named_parameters())


def test_is_a_deterministic_function_in_training_mode(learner: Learner) -> None:
    assert all(module.training for module in learner.modules())
    inputs = inputs_for(learner)
    assert torch.equal(learner(**inputs), learner(**inputs))


@pytest.mark.parametrize("second_order", [False, True])
def test_replaced_parameters_are_used_and_get_every_gradient(
    learner: Learner, second_order: bool
) -> None:
    learner.second_order = second_order
    other = {n: p.detach() + 0.1 * torch.randn_like(p) for n, p in learner.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):  # as in an inner loop: each step's parameters are results of the last
            leaves = {n: p.detach().requires_grad_() for n, p in other.items()}
            replaced = {n: p * 1.0 for n, p in leaves.items()}
            logits = functional_call(learner, replaced, kwargs=inputs_for(learner))
            gradients = torch.autograd.grad(logits.square().sum(), list(leaves.values()))
            assert all(torch.any(g != 0) for g in gradients)
    learner.load_state_dict(other, strict=False)
    torch.testing.assert_close(logits, learner(**inputs_for(learner)))


def test_both_implementations_agree(learner: Learner) -> None:
    parameters = dict(learner.named_parameters())
    results = []
    for learner.second_order in (False, True):
        value = loss(learner, parameters, [0, 1, 1])
        results.append((value, *torch.autograd.grad(value, list(parameters.values()))))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


def test_gradient_through_an_inner_step_agrees_with_finite_differences(learner: Learner) -> None:
    learner.second_order = True
    start = {n: p.detach().clone() for n, p in learner.named_parameters()}

    def adapted_loss(parameters: Tensors, *, create_graph: bool) -> Tensor:
        values = [p.requires_grad_() for p in parameters.values()]
        support = loss(learner, parameters, [0, 1, 1])
        gradients = torch.autograd.grad(support, values, create_graph=create_graph)
        moved = {n: p - 0.5 * g for (n, p), g in zip(parameters.items(), gradients, strict=True)}
        return loss(learner, moved, [1, 1, 0])

    leaves = {n: p.clone().requires_grad_() for n, p in start.items()}
    exact = torch.autograd.grad(adapted_loss(leaves, create_graph=True), list(leaves.values()))
    first_order = torch.autograd.grad(
        adapted_loss(leaves, create_graph=False), list(leaves.values())
    )
    for seed in range(3):
        torch.manual_seed(seed)
        direction = [torch.randn_like(p) for p in start.values()]
        step = 1e-7  # within a piece of functions with kinks
        plus, minus = (
            adapted_loss(
                {n: p + sign * d for (n, p), d in zip(start.items(), direction, strict=True)},
                create_graph=False,
            )
            for sign in (step, -step)
        )
        measured = (plus - minus).item() / (2 * step)
        slope, cut = (
            sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
            for gradients in (exact, first_order)
        )
        assert slope == pytest.approx(measured, rel=1e-6, abs=1e-10)
        assert cut != pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize(
    ("build", "spec", "message"),
    [
        (LSTM, IMAGES, r"LSTM reads text, .* is images: .* Words\(\)"),
        (LSTM, FEATURES, r"LSTM reads text, .* is feature vectors: .* Words\(\)"),
        (BERT, IMAGES, r"BERT reads text, .* is images: .* CheckpointTokenizer\(\)"),
        (CNN, TEXT, r"CNN reads images, .* is text: .* Pixels\(\)"),
        (Conv4, TEXT, r"Conv4 reads images, .* is text: .* Pixels\(\)"),
        (CNN, FEATURES, r"CNN reads images, .* is feature vectors: .* Pixels\(\)"),
        (Head, TEXT, r"Head reads feature vectors, .* is text: .* FrozenFeatures\(\)"),
        (Head, IMAGES, r"Head reads feature vectors, .* is images: .* FrozenFeatures\(\)"),
        (CNN, DataSpec(2, shape=(3, 4)), r"is of shape \(3, 4\)"),
        (MetricHead, TEXT, r"MetricHead reads feature vectors, .* is text: .* FrozenFeatures\(\)"),
        (NGramHead, TEXT, r"NGramHead reads n-grams, .* is text: .* NGrams\(\)"),
        (LSTM, NGRAMS, r"LSTM reads text, .* is n-grams: .* Words\(\)"),
    ],
)
def test_wrong_kind_of_data(build: type[Learner], spec: DataSpec, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(spec)
