"""Rules against their sources: hand computations, and the same mathematics written naively."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from lightning_evolve.errors import UsageError
from lightning_evolve.inner_loop import adapt, detached
from lightning_evolve.learners import Head
from lightning_evolve.meta_learners import (
    SGD,
    Adam,
    AdamW,
    CoordinateLSTM,
    CoordinateMLP,
    MetaSGD,
    Muon,
    coordinate_mlp,
)
from lightning_evolve.meta_learners import coordinate_mlp_in_place as in_place
from lightning_evolve.meta_learners.coordinate_lstm import log_sign
from lightning_evolve.meta_learners.coordinate_mlp_compiled import step_of_tensor
from lightning_evolve.meta_learners.muon import orthogonalise
from lightning_evolve.tasks import Batch, DataSpec, Task

SHAPES = {
    "embedding.weight": (7, 4),
    "again": (7, 4),
    "conv": (3, 2, 2, 2),
    "bias": (5,),
    "scale": (),
}


def tensors(seed, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=draw, dtype=dtype) for n, s in SHAPES.items()}


def stirred(rule, dtype=torch.float64, seed=0):
    """A rule with phi away from its start."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return rule.to(dtype)


def steps(rule, count=4, dtype=torch.float64):
    theta = tensors(0, dtype)
    state, directions = rule.init(theta), []
    for k in range(count):
        direction, state = rule(tensors(k + 1, dtype), theta, state)
        directions.append(direction)
    return directions


# ---------------------------------------------------------------- Muon


def muon_of_torch(monkeypatch, dtype, exact):
    if exact:
        # Torch iterates in bfloat16; without that it has to be the same mathematics digit by digit.
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    draw = torch.Generator().manual_seed(0)
    shapes = {"wide": (4, 9), "tall": (9, 4), "again": (4, 9), "square": (5, 5)}
    theta = {n: torch.randn(s, generator=draw, dtype=dtype) for n, s in shapes.items()}
    theirs = [t.clone().requires_grad_() for t in theta.values()]
    options = {"weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    optimizer = torch.optim.Muon(theirs, lr=0.03, **options)
    rule = Muon(theta, momentum=0.9)
    state, off = rule.init(theta), []
    for _ in range(6):
        grads = {n: torch.randn(s, generator=draw, dtype=dtype) for n, s in shapes.items()}
        direction, state = rule(grads, theta, state)
        theta = {n: t + 0.03 * direction[n] for n, t in theta.items()}
        for p, g in zip(theirs, grads.values(), strict=True):
            p.grad = g
        optimizer.step()
        pairs = zip(theta.values(), theirs, strict=True)
        off.append(max(float((a - b.detach()).abs().max()) for a, b in pairs))
    return off


def test_muon_is_torchs_step_by_step(monkeypatch):
    assert max(muon_of_torch(monkeypatch, torch.float64, exact=True)) < 1e-12


def test_muon_is_torchs_but_for_bfloat16(monkeypatch):
    off = muon_of_torch(monkeypatch, torch.float32, exact=False)
    assert 1e-6 < off[0] < 2e-3
    assert max(off) < 5e-3


def test_newton_schulz_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((6, 6), (4, 10), (10, 4)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(2, *shape)))
        assert (values > 0.3).all()
        assert (values < 1.3).all()


def test_muon_leaves_embeddings_heads_and_vectors_to_adamw():
    theta = {
        "embedding.weight": torch.randn(5, 3),
        "body.weight": torch.randn(3, 3),
        "body.bias": torch.randn(3),
        "head.weight": torch.randn(2, 3),
    }
    rule, adamw = Muon(theta), AdamW(theta, weight_decay=0.1)
    assert rule.matrices == ("body.weight",)
    grads = {n: torch.randn_like(t) for n, t in theta.items()}
    got, want = (r(grads, theta, r.init(theta))[0] for r in (rule, adamw))
    assert list(got) == list(theta)
    assert [n for n in theta if torch.allclose(got[n], want[n])] == [*rule.rest]
    # A learner that is nothing but a head would leave Muon nothing to do.
    assert Muon({"head.weight": torch.ones(2, 3)}).matrices == ("head.weight",)
    assert Muon(theta, adamw=["body.*"]).matrices == ("embedding.weight", "head.weight")
    with pytest.raises(UsageError, match="adamw: 'haed"):
        Muon(theta, adamw=["haed.*"])


def test_muon_takes_a_convolution_as_a_matrix():
    torch.manual_seed(0)
    kernel, gradient = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    rule, flat = Muon({"w": kernel}), Muon({"w": kernel.view(4, 12)})
    got = rule({"w": gradient}, {"w": kernel}, rule.init({"w": kernel}))[0]["w"]
    theta = {"w": kernel.view(4, 12)}
    want = flat({"w": gradient.view(4, 12)}, theta, flat.init(theta))[0]["w"]
    torch.testing.assert_close(got.view(4, 12), want)


# ---------------------------------------------------------------- Meta-SGD


@pytest.mark.parametrize("per", ["coordinate", "tensor"])
def test_meta_sgd_is_a_learned_rate_times_the_gradient(per):
    rule = stirred(MetaSGD(tensors(0), per=per, steps=2).double())
    for k, direction in enumerate(steps(rule)):
        for (name, gradient), rates in zip(tensors(k + 1).items(), rule.rates, strict=True):
            assert rates.shape == (2, *(SHAPES[name] if per == "coordinate" else ()))
            # Later steps than there are rates for take the last.
            torch.testing.assert_close(direction[name], -rates[min(k, 1)] * gradient)


def test_meta_sgd_starts_as_sgd():
    for got, want in zip(steps(MetaSGD(tensors(0))), steps(SGD(tensors(0))), strict=True):
        assert all(torch.equal(got[n], want[n]) for n in SHAPES)


def test_meta_sgd_serves_the_tensors_it_was_learned_for_and_no_others():
    rule = stirred(MetaSGD(tensors(0), per="tensor"))
    part = {"bias": torch.zeros(5)}
    assert rule.over(part).rates[0] is rule.rates[[*SHAPES].index("bias")]
    with pytest.raises(UsageError, match="MetaSGD has learned"):
        rule.over({"other": torch.zeros(5)})


# ---------------------------------------------------------------- coordinate LSTM


def test_log_sign_is_that_of_the_paper():
    p = 10.0
    values = [3.0, -0.02, math.exp(-p), -1e-6, 0.0]
    for value, got in zip(
        values, log_sign(torch.tensor(values, dtype=torch.float64)).T, strict=True
    ):
        large = abs(value) >= math.exp(-p)
        want = (
            (math.log(abs(value)) / p, math.copysign(1, value))
            if large
            else (-1, math.exp(p) * value)
        )
        assert got.tolist() == pytest.approx(want)


def test_coordinate_lstm_is_an_lstm_on_every_coordinate():
    """Against torch's nn.LSTM over the sequence of gradients, one sequence a coordinate."""
    rule = stirred(CoordinateLSTM(tensors(0), hidden_size=5, scale=0.5).double())
    reference = nn.LSTM(2, 5, num_layers=2).double()
    for layer, cell in enumerate(rule.cells):
        for name, weight in cell.named_parameters():
            getattr(reference, f"{name}_l{layer}").data.copy_(weight)
    gradients = [torch.cat([g.reshape(-1) for g in tensors(k + 1).values()]) for k in range(4)]
    with torch.no_grad():
        hidden, _ = reference(torch.stack([log_sign(g).T for g in gradients]))
        out = 0.5 * rule.head(hidden)
    with_grad, adam = steps(rule), steps(Adam(tensors(0)))
    with torch.no_grad():
        without = steps(rule)
    for k in range(4):
        base = torch.cat([d.reshape(-1) for d in adam[k].values()])
        want = out[k, :, 0].exp() * base + out[k, :, 1]
        for directions in (with_grad, without):
            got = torch.cat([d.reshape(-1) for d in directions[k].values()])
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- coordinate MLP


def naive_mlp(rule, count=4):
    """All 39 features stored, normalised and put through the network: what the rule must equal."""
    decays = (0.9, 0.99, 0.999)
    times = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
    theta, directions = tensors(0), []
    matrix = {
        n: (t.reshape(len(t), -1) if t.dim() > 1 else t.reshape(-1, 1)) for n, t in theta.items()
    }
    m = {(n, d): torch.zeros_like(t) for n, t in matrix.items() for d in decays}
    v, row, column = dict(m), dict(m), dict(m)
    adams = steps(Adam(theta), count)
    for k in range(count):
        direction = {}
        for n, p in matrix.items():
            g = tensors(k + 1)[n].reshape(p.shape)
            for d in decays:
                m[n, d] = d * m[n, d] + (1 - d) * g
                v[n, d] = d * v[n, d] + (1 - d) * g**2
                # Tiled: the factored moments are means of the full one along a row or column.
                row[n, d] = v[n, d].mean(dim=1, keepdim=True).expand_as(p)
                column[n, d] = v[n, d].mean(dim=0, keepdim=True).expand_as(p)

            def inverse(moment):
                return (moment / moment.mean() + 1e-6).rsqrt()

            second = v[n, 0.999]
            momenta = [m[n, d] for d in decays]
            factors = [inverse(row[n, d]) * inverse(column[n, d]) for d in decays]
            features = [g, p, second, inverse(second), *momenta]
            features += [x * inverse(second) for x in momenta]
            features += [g * f for f in factors]
            features += [x * f for x, f in zip(momenta, factors, strict=True)]
            features += [row[n, d] for d in decays] + [inverse(row[n, d]) for d in decays]
            features += [column[n, d] for d in decays] + [inverse(column[n, d]) for d in decays]
            stacked = torch.stack([f / f.square().mean().sqrt() for f in features], dim=-1)
            progress = p.new_tensor([math.tanh(k / t - 1) for t in times])
            stacked = torch.cat([stacked, progress.expand(*p.shape, -1)], dim=-1)
            out = rule.scale * rule.network(stacked)
            update = out[..., 0].exp() * adams[k][n].view_as(p) + out[..., 1]
            if rule.normalised:
                update = update * (adams[k][n].norm() / update.norm())
            direction[n] = update.view_as(theta[n])
        directions.append(direction)
    return directions


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("way", ["graph", "in place", "to compile"])
def test_coordinate_mlp_is_the_naive_one(monkeypatch, normalised, way):
    """With and without a graph, and in blocks much smaller than a tensor, the last a short one.

    What is compiled elsewhere runs as it is written here.
    """
    monkeypatch.setattr(coordinate_mlp, "compiled_step", lambda: step_of_tensor)
    monkeypatch.setattr(in_place, "_BLOCK", 8)
    monkeypatch.setattr(in_place, "_SQUARED", 12)
    rule = stirred(CoordinateMLP(tensors(0), scale=0.5, normalised=normalised).double())
    rule.compiled = way == "to compile"
    want = naive_mlp(rule)
    with torch.set_grad_enabled(way == "graph"):
        got = steps(rule)
    for ours, naive in zip(got, want, strict=True):
        for name in SHAPES:
            torch.testing.assert_close(ours[name], naive[name], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(want[0]["conv"], steps(Adam(tensors(0)))[0]["conv"], rtol=1e-2)


def test_coordinate_mlp_sees_no_scale_of_the_gradient():
    rule = stirred(CoordinateMLP(tensors(0)).double())
    theta = tensors(0)
    small, large = (
        rule({n: c * g for n, g in tensors(1).items()}, theta, rule.init(theta))[0]
        for c in (1e-3, 1e3)
    )
    for name in SHAPES:
        torch.testing.assert_close(small[name], large[name], rtol=1e-3, atol=1e-4)


def test_a_normalised_update_is_as_long_as_adams():
    rule = stirred(CoordinateMLP(tensors(0), scale=2.0, normalised=True).double())
    free = stirred(CoordinateMLP(tensors(0), scale=2.0).double())
    for ours, theirs, longer in zip(steps(rule), steps(Adam(tensors(0))), steps(free), strict=True):
        for name in SHAPES:
            torch.testing.assert_close(ours[name].norm(), theirs[name].norm())
            assert not torch.allclose(longer[name].norm(), theirs[name].norm(), rtol=1e-2)


# ---------------------------------------------------------------- all of them

RULES = {
    "muon": Muon,
    "meta_sgd": partial(MetaSGD, steps=2),
    "lstm": partial(CoordinateLSTM, hidden_size=3),
    "mlp": CoordinateMLP,
    "mlp_normalised": partial(CoordinateMLP, normalised=True),
}


@pytest.mark.parametrize("rule", [CoordinateLSTM, CoordinateMLP, RULES["mlp_normalised"]])
def test_starts_as_adam(rule):
    for ours, adam in zip(steps(rule(tensors(0)).double()), steps(Adam(tensors(0))), strict=True):
        for name in SHAPES:
            torch.testing.assert_close(ours[name], adam[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_a_graph_changes_no_number_and_no_state_is_written_to(rule):
    meta_learner = stirred(RULES[rule](tensors(0, torch.float32)), torch.float32)
    with_graph = steps(meta_learner, dtype=torch.float32)
    theta, grads = tensors(0, torch.float32), tensors(1, torch.float32)
    with torch.no_grad():
        without = steps(meta_learner, dtype=torch.float32)
        _, state = meta_learner(grads, theta, meta_learner.init(theta))
        copies = {k: {n: t.clone() for n, t in a.items()} for k, a in state.accumulators.items()}
        first, _ = meta_learner(grads, theta, state)
        second, _ = meta_learner(grads, theta, state)
    for a, b in zip(with_graph, without, strict=True):
        for name in SHAPES:
            torch.testing.assert_close(a[name], b[name], rtol=2e-4, atol=2e-5)
    assert all(torch.equal(first[n], second[n]) for n in SHAPES)
    for kind, saved in copies.items():
        assert all(torch.equal(saved[n], t) for n, t in state.accumulators[kind].items())
    assert all(torch.equal(grads[n], g) for n, g in tensors(1, torch.float32).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_of_zero_has_finite_first_and_second_derivatives(rule, dtype):
    theta = {"w": torch.zeros(3, 2, dtype=dtype), "b": torch.zeros(3, dtype=dtype)}
    meta_learner = stirred(RULES[rule](theta), dtype)
    x = {n: torch.zeros_like(t).requires_grad_() for n, t in theta.items()}
    state = meta_learner.init(theta)
    for _ in range(2):
        direction, state = meta_learner(x, theta, state)
    total = sum(d.square().sum() + d.sum() for d in direction.values())
    first = torch.autograd.grad(total, list(x.values()), create_graph=True)
    assert all(torch.isfinite(g).all() for g in first)
    if any(g.requires_grad for g in first):
        again = torch.autograd.grad(
            sum(g.sum() for g in first), list(x.values()), allow_unused=True
        )
        assert all(g is None or torch.isfinite(g).all() for g in again)


def test_under_autocast_a_rule_computes_in_the_precision_of_theta():
    class Spy(CoordinateMLP):
        def forward(self, grads, params, state):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(grads, params, state)

    torch.manual_seed(0)
    seen = []
    learner = Head(DataSpec(num_classes=3, shape=(5,)), hidden_size=4)
    theta = detached(dict(learner.named_parameters()))
    batch = Batch({"features": torch.randn(6, 5)}, torch.arange(6) % 3, torch.arange(6))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        adapt(learner, Spy(theta), theta, Task((batch,), batch), alpha=0.1, steps=2)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False, False]


@pytest.mark.parametrize(
    "wrong",
    [
        partial(MetaSGD, steps=0),
        partial(MetaSGD, per="row"),
        partial(CoordinateLSTM, hidden_size=0),
        partial(Muon, momentum=1.0),
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        wrong({"w": torch.zeros(2, 2)})
