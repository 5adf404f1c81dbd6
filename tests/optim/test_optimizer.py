"""LearnedOptimizer against torch's own optimizers, and what those are tested for."""

from __future__ import annotations

import pickle
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from lightning_evolve.errors import UsageError
from lightning_evolve.inner_loop import adapt
from lightning_evolve.learners import CNN
from lightning_evolve.meta_learners import (
    SGD,
    Adam,
    AdamW,
    Controller,
    CoordinateLSTM,
    CoordinateMLP,
    Gains,
    Linear,
    MetaSGD,
    Momentum,
    Muon,
    RelativeGains,
)
from lightning_evolve.optim import LearnedOptimizer
from lightning_evolve.tasks import Batch, DataSpec, Task

LEARNED = [
    Gains,
    partial(Gains, per="role"),
    RelativeGains,
    Linear,
    CoordinateMLP,
    CoordinateLSTM,
    MetaSGD,
    Controller,
]
RATIOS = partial(Adam, ratios={"embedding.*": 3.0, "head.*": 0.5})
RULES = [SGD, Momentum, Adam, AdamW, Muon, *LEARNED]


class Net(nn.Module):
    """Tensors of all kinds: an embedding, matrices, a norm, a scalar, and an empty one."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.head = nn.Linear(5, 3)
        self.to(dtype)

    def forward(self, ids):
        return self.head(self.norm(self.hidden(self.embedding(ids)).tanh()) * self.scale)


def loss_of(model, step=0):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 7, (6,), generator=generator)
    labels = torch.randint(0, 3, (6,), generator=generator)
    return nn.functional.cross_entropy(model(ids).float(), labels)


def train(model, optimizer, steps=5, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    return dict(model.named_parameters())


def equal(ours, theirs, **tolerance):
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], **(tolerance or dict(rtol=0, atol=0)))


def disturb(rule, size=0.3):
    """A phi as after training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))
    return rule


def optimizer_of(model, rule=Gains, **options):
    torch.manual_seed(1)
    trained = disturb(rule(dict(model.named_parameters())))
    return LearnedOptimizer(model.named_parameters(), trained, **{"lr": 0.02, **options})


# ------------------------------------------------------------------ the same as torch's


@pytest.mark.parametrize("rule", [Gains, partial(Gains, per="role"), Linear, CoordinateMLP, Adam])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_with_phi_at_its_start_it_is_adamw(rule, decay):
    ours, theirs = Net(torch.float64), Net(torch.float64)
    equal(
        train(ours, LearnedOptimizer(ours.named_parameters(), rule, lr=0.02, weight_decay=decay)),
        train(theirs, torch.optim.AdamW(theirs.parameters(), lr=0.02, weight_decay=decay)),
        rtol=1e-7,
        atol=1e-9,
    )


def test_it_differs_from_adam_with_weight_decay_in_the_gradient():
    ours, theirs = Net(torch.float64), Net(torch.float64)
    train(ours, LearnedOptimizer(ours.parameters(), Adam, lr=0.02, weight_decay=0.1))
    train(theirs, torch.optim.Adam(theirs.parameters(), lr=0.02, weight_decay=0.1))
    assert (ours.head.weight - theirs.head.weight).abs().max() > 1e-4


@pytest.mark.parametrize("rule", LEARNED)
def test_with_a_trained_phi_it_takes_the_steps_of_the_inner_loop(rule):
    torch.manual_seed(0)
    learner = CNN(DataSpec(num_classes=3, shape=(1, 8, 8)), channels=(3, 4))
    theta = {name: p.detach().clone() for name, p in learner.named_parameters()}
    batch = Batch({"images": torch.randn(6, 1, 8, 8)}, torch.arange(6) % 3, torch.arange(6))
    meta_learner = disturb(rule(theta), size=0.1)
    adapted = adapt(learner, meta_learner, theta, Task((batch,), batch), alpha=0.01, steps=4)

    optimizer = LearnedOptimizer(learner.named_parameters(), meta_learner, lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(learner(**batch.inputs), batch.labels).backward()
        optimizer.step()
    assert (learner.head.weight - theta["head.weight"]).abs().max() > 1e-3
    equal(dict(learner.named_parameters()), adapted.theta, rtol=1e-5, atol=1e-6)


def test_the_rule_is_a_copy():
    model = Net()
    rule = disturb(Gains(dict(model.named_parameters())))
    optimizer = LearnedOptimizer(model.named_parameters(), rule)
    before = optimizer.rule.log_gains.clone()
    disturb(rule)
    assert torch.equal(optimizer.rule.log_gains, before)
    assert rule.log_gains.requires_grad
    assert not optimizer.rule.log_gains.requires_grad


# ------------------------------------------------------------------ as torch tests its own


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.filterwarnings("ignore:the parameters have no names")
def test_going_on_from_a_state_dict_is_exact(rule, named, tmp_path):
    model = Net()
    params = model.named_parameters if named else model.parameters
    optimizer = LearnedOptimizer(params(), rule, lr=0.02)
    train(model, optimizer, steps=3)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    train(model, optimizer, steps=3, first=3)

    other = Net()
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(weights)
    resumed = LearnedOptimizer(other.named_parameters() if named else other.parameters(), rule)
    resumed.load_state_dict(state)
    assert resumed.param_groups[0]["lr"] == 0.02
    equal(train(other, resumed, steps=3, first=3), dict(model.named_parameters()))


def test_a_state_of_another_rule_is_refused():
    model = Net()
    gains = optimizer_of(model)
    train(model, gains)
    same = LearnedOptimizer(model.named_parameters(), deepcopy(gains.rule))
    same.load_state_dict(gains.state_dict())
    for rule in (Linear, Gains, partial(Gains, horizon=7)):  # the second has another phi
        other = LearnedOptimizer(model.named_parameters(), rule)
        with pytest.raises(UsageError, match="the state is that of Gains"):
            other.load_state_dict(gains.state_dict())
    with pytest.raises(UsageError, match="another optimizer"):
        gains.load_state_dict(torch.optim.Adam(model.parameters()).state_dict())


@pytest.mark.parametrize("copy", [deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_alike(copy):
    model = Net()
    optimizer = optimizer_of(model)
    train(model, optimizer, steps=2)
    twin, same = copy((model, optimizer))
    equal(train(twin, same, first=2), train(model, optimizer, first=2))
    assert same.rule.options == optimizer.rule.options


def test_parameter_groups_have_rates_and_decays_of_their_own():
    ours, theirs = Net(torch.float64), Net(torch.float64)

    def groups(model):
        head = list(model.head.parameters())
        rest = [p for n, p in model.named_parameters() if not n.startswith("head")]
        return [{"params": head, "lr": 0.1, "weight_decay": 0.3}, {"params": rest}]

    one = LearnedOptimizer(groups(ours), Gains, lr=0.01)
    two = torch.optim.AdamW(groups(theirs), lr=0.01, weight_decay=0.0)
    assert [g["lr"] for g in one.param_groups] == [0.1, 0.01]
    equal(train(ours, one), train(theirs, two), rtol=1e-7, atol=1e-9)


def test_parameters_may_thaw_and_join_later_and_begin_at_step_0():
    ours, theirs = Net(torch.float64), Net(torch.float64)

    def run(model, build):
        model.embedding.requires_grad_(False)
        first = [p for n, p in model.named_parameters() if not n.startswith("head")]
        optimizer = build(first)
        train(model, optimizer, steps=2)
        model.embedding.requires_grad_(True)
        optimizer.add_param_group({"params": list(model.head.parameters()), "lr": 0.05})
        return train(model, optimizer, steps=3, first=2), optimizer

    ours, optimizer = run(ours, lambda ps: LearnedOptimizer(ps, CoordinateMLP, lr=0.02))
    theirs, _ = run(theirs, lambda ps: torch.optim.Adam(ps, lr=0.02))
    equal(ours, theirs, rtol=1e-7, atol=1e-9)
    assert {optimizer.state[p]["step"] for p in optimizer.state} == {3, 5}
    assert ours["empty"] not in optimizer.state


def test_what_is_frozen_does_not_count_as_a_layer():
    """A head on a frozen encoder steps as a head alone does, until the encoder thaws."""
    model, alone = Net(), Net()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("head"))
    rule = disturb(RelativeGains(dict(Net().named_parameters())))
    ours = LearnedOptimizer(model.named_parameters(), rule)
    head = {n: p for n, p in alone.named_parameters() if n.startswith("head")}
    theirs = LearnedOptimizer(head.items(), rule)
    train(alone, theirs)
    equal(train(model, ours), head)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model.requires_grad_(True), ours, steps=1)
    thawed = model.head.weight - before["head.weight"]
    train(alone, theirs, steps=1)
    # Three matrices adapt now in place of one, and the features are the same as before.
    torch.testing.assert_close(3 * thawed, alone.head.weight - before["head.weight"])
    assert not torch.equal(model.hidden.weight, before["hidden.weight"])


def test_nothing_adapts_and_nothing_moves():
    model = Net().requires_grad_(False)
    before = {n: p.clone() for n, p in model.named_parameters()}
    for rule in RULES:
        LearnedOptimizer(model.named_parameters(), rule).step()
    equal(dict(model.named_parameters()), before)


@pytest.mark.parametrize("rule", [CoordinateMLP, CoordinateLSTM, Controller, Muon, RelativeGains])
def test_autocast_is_for_the_model_and_not_for_the_rule(rule):
    model, other = Net(), Net()
    inside, outside = optimizer_of(model, rule), optimizer_of(other, rule)
    for step in range(3):
        for one, optimizer in ((model, inside), (other, outside)):
            optimizer.zero_grad()
            loss_of(one, step).backward()
        with torch.autocast("cpu", torch.bfloat16):
            inside.step()
        outside.step()
    equal(dict(model.named_parameters()), dict(other.named_parameters()))


@pytest.mark.parametrize("rule", [Gains, MetaSGD, Controller, Muon, RATIOS])
def test_a_subset_takes_what_belongs_to_its_own_tensors(rule):
    whole, part = Net(), Net()
    rule = disturb(rule(dict(whole.named_parameters())))
    train(whole, LearnedOptimizer(whole.named_parameters(), rule), steps=1)
    only = [(n, p) for n, p in part.named_parameters() if n.startswith(("head", "norm"))]
    train(part, LearnedOptimizer(only, rule), steps=1)
    equal(dict(part.head.named_parameters()), dict(whole.head.named_parameters()))
    assert torch.equal(part.embedding.weight, Net().embedding.weight)


def test_schedulers_closures_and_hooks():
    ours, theirs = Net(torch.float64), Net(torch.float64)

    def run(model, optimizer):
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
        calls = []
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))

        def closure():
            optimizer.zero_grad()
            assert torch.is_grad_enabled()
            loss = loss_of(model)
            loss.backward()
            return loss

        losses = []
        for _ in range(4):
            losses.append(optimizer.step(closure))
            schedule.step()
        assert calls == ["before", "after"] * 4
        return torch.stack(losses)

    one = run(ours, LearnedOptimizer(ours.parameters(), Adam, lr=0.02))
    two = run(theirs, torch.optim.Adam(theirs.parameters(), lr=0.02))
    torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)


def test_one_cycle_and_the_scaler_of_16_bit_losses():
    ours, theirs = Net(torch.float64), Net(torch.float64)

    def run(model, optimizer):
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.05, total_steps=8, cycle_momentum=False
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            if step == 3:  # the scaler passes over what has overflown
                model.norm.bias.grad[0] = float("inf")
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
        return dict(model.named_parameters())

    one = LearnedOptimizer(ours.named_parameters(), Gains, lr=0.02)
    two = torch.optim.Adam(theirs.parameters(), lr=0.02)
    equal(run(ours, one), run(theirs, two), rtol=1e-7, atol=1e-9)
    assert {state["step"] for state in one.state.values()} == {5}


def test_a_state_goes_to_parameters_of_another_precision():
    model, other, whole = Net(), Net(torch.float64), Net(torch.float64)
    optimizer = optimizer_of(model, CoordinateMLP)
    train(model, optimizer, steps=3)
    resumed = optimizer_of(other, CoordinateMLP)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    train(other, resumed, steps=2, first=3)
    train(whole, optimizer_of(whole, CoordinateMLP))
    equal(dict(other.named_parameters()), dict(whole.named_parameters()), rtol=1e-3, atol=1e-4)
    kinds = {t.dtype for s in resumed.state.values() for t in s.values() if torch.is_tensor(t)}
    assert kinds == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_state_of_64_bits_goes_to_parameters_of_16(dtype):
    model, other = Net(torch.float64), Net(dtype)
    optimizer = optimizer_of(model)
    train(model, optimizer, steps=2)
    resumed = optimizer_of(other)
    resumed.load_state_dict(optimizer.state_dict())
    train(other, resumed, steps=1, first=2)
    kinds = {t.dtype for s in resumed.state.values() for t in s.values() if torch.is_tensor(t)}
    assert kinds == {torch.float32}


def test_a_state_of_other_groups_is_refused_as_torchs_optimizers_do():
    model = Net()
    head = list(model.head.named_parameters())
    rest = [(n, p) for n, p in model.named_parameters() if not n.startswith("head")]
    one = LearnedOptimizer([{"params": head}, {"params": rest}], Adam)
    other = LearnedOptimizer([{"params": rest}, {"params": head}], Adam)
    train(model, one, steps=1)
    with pytest.raises(ValueError, match="doesn't match the size"):
        other.load_state_dict(one.state_dict())
    assert not other.state


def test_zero_grad_and_steps_without_gradients_change_nothing():
    model = Net()
    optimizer = optimizer_of(model, weight_decay=0.1)
    loss_of(model).backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()
    equal(dict(model.named_parameters()), dict(Net().named_parameters()))
    assert not optimizer.state


def test_a_rate_that_is_a_tensor():
    one, two = Net(), Net()
    equal(
        train(one, optimizer_of(one, lr=torch.tensor(0.02, dtype=torch.float64))),
        train(two, optimizer_of(two, lr=0.02)),
    )


@pytest.mark.parametrize("rule", [Gains, CoordinateMLP, CoordinateLSTM])
@pytest.mark.filterwarnings("ignore:the parameters have no names")
def test_16_bits_are_updated_in_32_and_go_on_exactly(rule):
    model, reference = Net(), Net()
    model.head.bfloat16()
    model.norm.half()
    state = {n: p.detach().float() for n, p in model.named_parameters()}
    reference.load_state_dict(state)
    optimizer = optimizer_of(model, rule)
    generator = torch.Generator().manual_seed(0)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        q.grad = p.grad.float()
    other = optimizer_of(reference, rule)
    optimizer.step()
    other.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach().to(p.dtype))
    kind = next(kind for kind in optimizer.state[model.head.weight] if kind != "step")
    moment = optimizer.state[model.head.weight][kind]
    assert moment.dtype == torch.float32

    resumed = optimizer_of(model, rule)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    # Torch's own load would have rounded it.
    assert not torch.equal(moment, moment.bfloat16().float())
    assert torch.equal(resumed.state[model.head.weight][kind], moment)


def test_64_bits_beside_32():
    model = Net()
    model.head.double()
    both = Net(torch.float64)
    for net in (model, both):
        optimizer = optimizer_of(net, Linear)
        for p in net.parameters():
            p.grad = torch.full_like(p, 0.1)
        optimizer.step()
    assert model.head.weight.dtype == torch.float64
    equal(dict(model.head.named_parameters()), dict(both.head.named_parameters()))


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("rule", [Adam, Gains, CoordinateMLP, CoordinateLSTM, Muon])
@pytest.mark.parametrize(
    ("of_weight", "of_gradient"),
    [
        (torch.Tensor.clone, channels_last),
        (channels_last, torch.Tensor.clone),
        (channels_last, channels_last),
        (torch.Tensor.clone, lambda g: g[:1, :1, :1, :1].expand_as(g)),
    ],
)
def test_the_order_of_numbers_in_memory_changes_nothing(rule, of_weight, of_gradient):
    """Torch's fused kernel would read memory as it comes, and past the end of an expanded one."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, generator=generator)
    moved = []
    for contiguous in (True, False):
        draw = torch.Generator().manual_seed(1)
        p = nn.Parameter(weight.clone() if contiguous else of_weight(weight))
        optimizer = optimizer_of(nn.ParameterDict({"weight": p}), rule)
        for _ in range(3):
            gradient = of_gradient(torch.randn(4, 3, 2, 2, generator=draw))
            p.grad = gradient.contiguous() if contiguous else gradient
            optimizer.step()
        moved.append(p.detach().contiguous())
    torch.testing.assert_close(*moved)


# ------------------------------------------------------------------ what is refused


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = Net()
    optimizer = optimizer_of(model)
    train(model, optimizer, steps=1)
    before = deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    loss_of(model).backward()
    for bad in (float("nan"), float("inf"), -float("inf")):
        model.norm.bias.grad[1] = bad
        with pytest.raises(UsageError, match=r"the gradient of norm\.bias has NaN or infinite"):
            optimizer.step()
    equal(model.state_dict(), before[0])
    for key, values in before[1].items():
        assert values["step"] == optimizer.state_dict()["state"][key]["step"] == 1
        assert torch.equal(values["m"], optimizer.state_dict()["state"][key]["m"])
    # Large but finite: its sum overflows, it does not.
    model.norm.bias.grad.fill_(3e38)
    optimizer.step()
    lenient = optimizer_of(model, error_if_nonfinite=False)
    model.norm.bias.grad[1] = float("nan")
    lenient.step()
    assert model.norm.bias.isnan().any()


def test_a_sparse_gradient_is_refused():
    layer = nn.Embedding(3, 2, sparse=True)
    optimizer = LearnedOptimizer(layer.named_parameters(), Adam)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(UsageError, match=r"the gradient of weight is sparse.*sparse=False"):
        optimizer.step()


@pytest.mark.parametrize(
    ("params", "options", "said"),
    [
        (torch.zeros(2), {"lr": -1.0}, "lr is -1"),
        (torch.zeros(2), {"lr": float("nan")}, "lr is nan"),
        (torch.zeros(2), {"weight_decay": -0.1}, r"weight_decay is -0\.1"),
        (torch.zeros(2, dtype=torch.complex64), {}, "parameter 0 is complex"),
        (torch.zeros(2), {"rule": 1e-3}, r"rule is 0\.001"),
    ],
)
def test_bad_arguments(params, options, said):
    with pytest.raises(UsageError, match=said):
        LearnedOptimizer([params.requires_grad_()], **{"rule": Adam, **options})


def test_a_bad_group_is_refused_and_not_added():
    model = Net()
    named = dict(model.named_parameters())
    head = [(n, named.pop(n)) for n in ("head.weight", "head.bias")]
    optimizer = LearnedOptimizer(named.items(), Gains)
    with pytest.raises(UsageError, match="lr is -1"):
        optimizer.add_param_group({"params": head, "lr": -1.0})
    with pytest.raises(UsageError, match=r"something for each of 7 tensors, and head\.weight"):
        optimizer.add_param_group({"params": head})
    with pytest.raises(UsageError, match="two parameters are called scale"):
        optimizer.add_param_group({"params": [("scale", head[0][1])]})
    assert len(optimizer.param_groups) == 1
    shared = LearnedOptimizer(named.items(), partial(Gains, per="role"))
    with pytest.warns(UserWarning, match="nothing about tensors of the role head, such as head.w"):
        shared.add_param_group({"params": head})
    train(model, shared, steps=1)


def test_gains_of_tensors_do_not_fit_another_model_and_gains_of_roles_do():
    model, other = Net(), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    named = dict(model.named_parameters())
    with pytest.raises(UsageError, match=r"0\.weight of shape \(4, 3\) is none of them.*per: role"):
        LearnedOptimizer(other.named_parameters(), Gains(named))
    rule = Gains(named, per="role")
    with torch.no_grad():
        rule.log_gains[3] = 1.0  # matrices
    optimizer = LearnedOptimizer(other.named_parameters(), rule, lr=0.1)
    for p in other.parameters():
        p.grad = torch.ones_like(p)
    before = deepcopy(other)
    optimizer.step()
    moved = {
        n: (p - before.get_parameter(n)).abs().max().item() for n, p in other.named_parameters()
    }
    assert moved["0.weight"] == pytest.approx(0.1 * 2.71828, rel=1e-3)
    assert moved["0.bias"] == pytest.approx(0.1, rel=1e-3)


def test_roles_without_names_warn():
    with pytest.warns(UserWarning, match=r"pass model\.named_parameters"):
        LearnedOptimizer(Net().parameters(), partial(Gains, per="role"))


def test_the_gradient_of_a_role_is_the_sum_over_its_tensors():
    theta = {n: p.detach() for n, p in Net(torch.float64).named_parameters() if p.numel()}
    generator = torch.Generator().manual_seed(2)
    grads = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in theta.items()}
    slopes = {}
    for per in ("role", "tensor"):
        rule = Gains(theta, per=per).double()
        direction, _ = rule(grads, theta, rule.init(theta))
        total = sum((d * d).sum() * (i + 1) for i, d in enumerate(direction.values()))
        total.backward()
        slopes[per] = (rule.log_gains.grad, rule.sharing.grad, rule.rows)
    rows = Gains(theta, per="role").rows
    for shared, own in zip(slopes["role"][:2], slopes["tensor"][:2], strict=True):
        torch.testing.assert_close(shared, torch.zeros_like(shared).index_add(0, rows, own))
    assert len(rows.unique()) == 5


@pytest.mark.slow
def test_compiled_steps_are_the_same(tmp_path):
    rule = partial(CoordinateMLP, hidden_size=2)
    models = (Net(torch.float64), Net(torch.float64))
    optimizers = [
        optimizer_of(model, rule, compile=way)
        for model, way in zip(models, (False, True), strict=True)
    ]
    calls = counters["stats"]["calls_captured"]
    ours = [train(m, optimizer) for m, optimizer in zip(models, optimizers, strict=True)]
    assert counters["stats"]["calls_captured"] > calls, "something was compiled"
    equal(*ours, rtol=1e-9, atol=1e-9)
    assert deepcopy(optimizers[1]).compile
    optimizers[1].save_pretrained(tmp_path / "rule")
    again = LearnedOptimizer.from_pretrained(
        Net().named_parameters(), tmp_path / "rule", compile=True
    )
    assert again.compile


def test_what_cannot_be_compiled_is_said(monkeypatch):
    with pytest.warns(UserWarning, match="compile=True does nothing for Gains"):
        LearnedOptimizer(Net().named_parameters(), Gains, compile=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"no-such-compiler.*or give compile=False"):
        LearnedOptimizer(Net().named_parameters(), CoordinateMLP, compile=True)


# ------------------------------------------------------------------ wrappers and mistakes


@pytest.mark.parametrize("rule", [Gains, partial(Gains, per="role"), Muon, RATIOS])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_the_names_of_a_wrapper_change_nothing(rule, prefix):
    """Those of a compiled or distributed model, or of an average of models."""
    plain, wrapped = Net(), Net()
    ours = optimizer_of(plain, rule)
    named = [(prefix + name, p) for name, p in wrapped.named_parameters()]
    theirs = LearnedOptimizer(named, ours.rule, lr=0.02)
    train(wrapped, theirs)
    equal(train(plain, ours), dict(wrapped.named_parameters()))


@pytest.mark.parametrize("rule", [Gains, partial(Gains, per="role")])
def test_a_state_goes_on_under_the_names_that_the_optimizer_has(rule):
    source, target = Net(), Net()
    first = optimizer_of(source, rule)
    train(source, first)
    state = deepcopy(first.state_dict())
    for group in state["param_groups"]:
        group["param_names"] = [f"wrapped.{name}" for name in group["param_names"]]
    target.load_state_dict(source.state_dict())
    second = LearnedOptimizer(target.named_parameters(), first.rule, lr=0.02)
    second.load_state_dict(state)
    assert second.param_groups[0]["param_names"] == [n for n, _ in target.named_parameters()]
    equal(train(target, second, first=5), train(source, first, first=5))
    unnamed = LearnedOptimizer(Net().parameters(), first.rule)
    unnamed.load_state_dict(state)
    assert "param_names" not in unnamed.param_groups[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_decay_that_16_bits_would_round_away_counts(dtype):
    p = nn.Parameter(torch.ones(3, dtype=dtype))
    p.grad = torch.full_like(p, 1e-3)
    LearnedOptimizer([p], SGD, lr=1.0, weight_decay=1e-3).step()
    expected = (torch.ones(3) - 1e-3 * p.grad.float() / p.grad.float() - p.grad.float()).to(dtype)
    assert torch.equal(p.detach(), expected)


def test_options_of_a_group_that_would_be_ignored():
    p = nn.Parameter(torch.ones(2))
    for option in ("maximize", "betas", "eps", "momentum"):
        with pytest.raises(UsageError, match=f"a parameter group has {option}, which is the rule"):
            LearnedOptimizer([{"params": [p], option: 1}], Adam)
    with pytest.warns(UserWarning, match="has wieght_decay, which LearnedOptimizer does not read"):
        LearnedOptimizer([{"params": [p], "wieght_decay": 0.1}], Adam)


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        (torch.optim.Adam, {}, "rule is Adam, which is no update rule"),
        (nn.Linear(2, 2), {}, "rule is .*, which is no update rule"),
        (lambda named: None, {}, "gives None and no update rule"),
        (Adam, {"lr": None}, "lr is None; give a number"),
        (Adam, {"lr": "1e-3"}, "lr is '1e-3'; give a number"),
        (partial(Gains, betas=(0.9,)), {}, r"betas is \(0.9,\); give two"),
    ],
)
def test_what_is_no_rule_or_rate_is_said(rule, options, said):
    with pytest.raises(UsageError, match=said):
        LearnedOptimizer([nn.Parameter(torch.ones(2))], rule, **options)
