"""Adam's moments by torch's fused kernel, which serves where no graph is kept."""

from __future__ import annotations

import pytest
import torch

from lightning_evolve.meta_learners import State
from lightning_evolve.meta_learners.moments import adam_moments


def tensors(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=dtype)
        for name, shape in (("a", (5, 3)), ("b", (4,)), ("c", ()))
    }


def steps(dtype, *, graph, donated=False, betas=(0.8, 0.95), eps=1e-4):
    zeros = {name: torch.zeros_like(t) for name, t in tensors(0, dtype).items()}
    state = State(0, {"m": zeros, "v": {n: t.clone() for n, t in zeros.items()}}, donated)
    with torch.set_grad_enabled(graph):
        for seed in range(4):
            moments = adam_moments(tensors(seed, dtype), state, betas, eps)
            state = moments.state._replace(donated=donated)
    return [*moments.m, *moments.v, *moments.direction], zeros


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("donated", [False, True])
def test_with_and_without_a_graph_it_is_the_same(dtype, rtol, donated):
    plain, _ = steps(dtype, graph=True)
    fused, _ = steps(dtype, graph=False, donated=donated)
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-7 if rtol > 1e-6 else 1e-14)


@pytest.mark.parametrize("graph", [False, True])
def test_only_a_donated_state_is_overwritten(graph):
    _, kept = steps(torch.float32, graph=graph)
    assert all((t == 0).all() for t in kept.values())
    _, given = steps(torch.float32, graph=False, donated=True)
    assert all((t != 0).all() for t in given.values())
