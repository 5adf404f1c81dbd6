"""Heads that start at zero: their first step is the nearest mean."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lightning_evolve.errors import UsageError
from lightning_evolve.inner_loop import adapt, detached, logits
from lightning_evolve.learners import MetricHead, NGramHead
from lightning_evolve.meta_learners import SGD
from lightning_evolve.tasks import Batch, DataSpec, Task

WAYS, SHOTS, QUERIES, WIDTH = 3, 2, 4, 6


def bags(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.stack([torch.randperm(WIDTH)[:4] for _ in range(rows)])
    weights = torch.rand(rows, 4)
    weights[:, 3] = 0  # padding, whatever its number
    return ids, weights


def dense(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(ids), WIDTH).scatter(1, ids, weights)


def episode(text: bool) -> tuple[Task, torch.Tensor, torch.Tensor]:
    """A task of n-grams or features, and the features of its support and query rows."""
    batches, features = [], []
    for each in (SHOTS, QUERIES):
        labels = torch.arange(WAYS).repeat_interleave(each)
        if text:
            ids, weights = bags(len(labels))
            inputs = {"input_ids": ids, "weights": weights}
            features.append(dense(ids, weights))
        else:
            inputs = {"features": torch.randn(len(labels), WIDTH)}
            features.append(inputs["features"])
        batches.append(Batch(inputs, labels, torch.arange(len(labels))))
    return Task((batches[0],), batches[1]), *features


@pytest.mark.parametrize("text", [False, True])
def test_the_first_step_is_the_nearest_mean(text: bool) -> None:
    torch.manual_seed(0)
    task, support, query = episode(text)
    spec = DataSpec(WAYS, vocab_size=WIDTH if text else 0, shape=(4 if text else WIDTH,))
    learner = NGramHead(spec, embedding_size=0) if text else MetricHead(spec)
    theta = detached({n: p for n, p in learner.named_parameters() if n.startswith("head")})
    adapted = adapt(learner, SGD(theta), theta, task, alpha=6.0, steps=1)
    support, query = (functional.normalize(rows, dim=-1) for rows in (support, query))
    means = support.reshape(WAYS, SHOTS, WIDTH).mean(1)
    expected = 6.0 / WAYS * query @ (means - means.mean(0)).T
    torch.testing.assert_close(logits(learner, adapted.theta, task.query), expected)


def test_gains_embeddings_and_metric_change_the_features() -> None:
    torch.manual_seed(0)
    ids, weights = bags(5)
    learner = NGramHead(DataSpec(WAYS, vocab_size=WIDTH, shape=(4,)), embedding_size=4)
    head = MetricHead(DataSpec(WAYS, shape=(WIDTH,)))
    with torch.no_grad():
        for parameter in [*learner.parameters(), *head.parameters()]:
            parameter.copy_(torch.randn_like(parameter))
        u = dense(ids, weights) * learner.gains.weight.T
        v = functional.normalize(torch.cat([u, u @ learner.embedding.weight / 8], dim=-1))
        expected = v @ learner.head.weight.T + learner.head.bias
        torch.testing.assert_close(learner(ids, weights), expected)
        x = torch.randn(5, WIDTH)
        z = functional.normalize(functional.normalize(x) @ head.metric.weight.T + head.metric.bias)
        expected = z @ head.head.weight.T + head.head.bias
        torch.testing.assert_close(head(x), expected)


def test_a_text_without_a_known_ngram_has_finite_logits_and_gradients() -> None:
    learner = NGramHead(DataSpec(WAYS, vocab_size=WIDTH, shape=(4,)))
    out = learner(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4))
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters() if p.grad is not None)
    assert torch.isfinite(out).all()


def test_negative_size_is_refused() -> None:
    with pytest.raises(UsageError, match="embedding_size of NGramHead is -1"):
        NGramHead(DataSpec(WAYS, vocab_size=WIDTH, shape=(4,)), embedding_size=-1)
