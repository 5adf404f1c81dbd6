"""Rules on disk: what is saved comes back the same, and what is damaged is told in one line."""

from __future__ import annotations

import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from lightning_evolve import pretrained
from lightning_evolve.errors import UsageError
from lightning_evolve.files import write_json
from lightning_evolve.meta_learners import (
    Adam,
    CoordinateLSTM,
    CoordinateMLP,
    Gains,
    Linear,
    MetaLearner,
    MetaSGD,
    RelativeGains,
)
from lightning_evolve.optim import LearnedOptimizer
from lightning_evolve.pretrained import configuration, export, load_rule, save_rule
from tests.modules.small import module, stream, trainer
from tests.optim.test_optimizer import Net, disturb, equal, optimizer_of, train


@pytest.mark.parametrize(
    "rule",
    [
        Adam,
        Gains,
        partial(Gains, per="role", horizon=7, knots=3, betas=(0.8, 0.99)),
        RelativeGains,
        Linear,
        partial(MetaSGD, per="tensor"),
        partial(CoordinateMLP, hidden_size=5),
        CoordinateLSTM,
    ],
)
def test_a_saved_rule_takes_the_same_steps(rule, tmp_path):
    one, two = Net(), Net()
    optimizer = optimizer_of(one, rule)
    optimizer.save_pretrained(tmp_path / "rule", trained_on={"data": "digits"})
    again = LearnedOptimizer.from_pretrained(two.named_parameters(), tmp_path / "rule")
    assert again.defaults["lr"] == 0.02
    assert again.trained_on == {"data": "digits"}
    equal(train(two, again), train(one, optimizer))
    again.load_state_dict(optimizer.state_dict())  # is that of the same rule
    assert sorted(p.name for p in (tmp_path / "rule").iterdir()) == [
        "README.md",
        "config.json",
        "rule.safetensors",
    ]


def test_the_card_says_what_it_is_and_its_program_runs(tmp_path, monkeypatch):
    save_rule(
        disturb(Gains(dict(Net().named_parameters()), per="role")),
        tmp_path / "path" / "to" / "this" / "folder",
        trained_on={"data": "digits", "outer_steps": 20},
    )
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "path" / "to" / "this" / "folder" / "README.md").read_text()
    for said in ("Gains", "- data: digits", "- outer_steps: 20", "numbers in phi: 19"):
        assert said in card
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {"model": Net()}
    exec(program, names)
    train(names["model"], names["optimizer"], steps=1)


def test_options_may_differ_from_those_of_the_training(tmp_path):
    model = Net()
    optimizer_of(model, partial(Gains, horizon=5)).save_pretrained(tmp_path)
    named = list(model.named_parameters())
    load = partial(LearnedOptimizer.from_pretrained, named, tmp_path)
    assert load().rule.horizon == 5
    stretched = load(lr=0.5, weight_decay=0.1, horizon=1000)
    assert stretched.rule.horizon == 1000
    assert stretched.param_groups[0]["lr"] == 0.5
    assert stretched.param_groups[0]["weight_decay"] == 0.1
    with pytest.raises(UsageError, match=r"has no option 'horizont'; it has .*horizon"):
        load(horizont=3)


def test_roles_go_to_another_model_and_tensors_do_not(tmp_path):
    model, other = Net(), nn.Sequential(nn.Linear(3, 4), nn.Conv1d(2, 2, 1))
    optimizer_of(model, partial(Gains, per="role")).save_pretrained(tmp_path / "role")
    optimizer_of(model, Gains).save_pretrained(tmp_path / "tensor")
    with pytest.warns(UserWarning, match="nothing about tensors of the role convolution"):
        LearnedOptimizer.from_pretrained(other.named_parameters(), tmp_path / "role")
    with pytest.raises(UsageError, match=r"0\.weight of shape \(4, 3\) is none of them"):
        LearnedOptimizer.from_pretrained(other.named_parameters(), tmp_path / "tensor")


def test_the_rule_of_a_checkpoint(tmp_path):
    classifier = module(meta_learner=partial(Gains, horizon=2))
    classifier_trainer = trainer(tmp_path, max_steps=3, enable_checkpointing=False)
    classifier_trainer.fit(classifier, datamodule=stream())
    classifier_trainer.save_checkpoint(tmp_path / "c.ckpt")
    export(tmp_path / "c.ckpt", tmp_path / "rule")
    rule, config = load_rule(tmp_path / "rule")
    assert rule.log_gains.abs().max() > 0
    assert torch.equal(rule.log_gains, classifier.meta_learner.log_gains)
    assert config["alpha"] == 0.01
    assert config["trained_on"] == {
        "data": "digits",
        "learner": "CNN",
        "estimator": "Unrolled",
        "reward": "NegativeLoss",
        "theta": "episodic",
        "inner_steps": 2,
        "outer_steps": 3,
    }
    LearnedOptimizer.from_pretrained(classifier.learner.named_parameters(), tmp_path / "rule")


# ------------------------------------------------------------------ bad input


@pytest.fixture
def folder(tmp_path):
    optimizer_of(Net()).save_pretrained(tmp_path / "rule")
    return tmp_path / "rule"


def change(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, **entries})


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no rule: there is no config.json"),
        (lambda f: (f / "rule.safetensors").unlink(), "there is no rule.safetensors"),
        (lambda f: cut(f / "rule.safetensors"), "rule.safetensors is damaged"),
        (lambda f: (f / "rule.safetensors").write_bytes(b""), "rule.safetensors is damaged"),
        (lambda f: cut(f / "config.json"), "config.json is damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is not of a rule"),
        (lambda f: (f / "config.json").write_text('{"format": 1}'), "'class' is missing"),
        (lambda f: change(f, format=9), "is in format 9 of lightning-evolve"),
        (lambda f: change(f, class_version=9), "its phi is for version 9 of Gains"),
        (lambda f: change(f, **{"class": "Gians"}), "the rule 'Gians' is none of .*Gains"),
        (lambda f: change(f, **{"class": "os.system"}), "import your own first"),
        (lambda f: change(f, options={"knots": 3}), r"log_schedule is \(5,\) there and \(3,\)"),
        (lambda f: change(f, options={"knots": 1}), "knots is 1"),
        (lambda f: change(f, options={"knobs": 3}), "Gains has no option 'knobs'"),
        (lambda f: change(f, alpha=None), "give lr"),
        (lambda f: change(f, alpha="x"), "'alpha' is \"x\""),
        (lambda f: change(f, options=None), "'options' is null"),
        (lambda f: change(f, options={"horizon": "x"}), "Gains cannot be built with horizon='x'"),
        (lambda f: change(f, tensors=[1]), r"'tensors' is \[1\]"),
        (lambda f: change(f, tensors={"w": [2, -1]}), r"the shape of w is \[2, -1\]"),
        (lambda f: change(f, options_not_saved=["eps"]), "the option 'eps' of Gains could not be"),
    ],
)
def test_what_is_damaged_is_told_in_one_line(folder, damage, said):
    damage(folder)
    with pytest.raises(UsageError, match=said) as error:
        LearnedOptimizer.from_pretrained(Net().named_parameters(), folder)
    assert "\n" not in str(error.value)


def test_what_is_not_json_is_refused_before_a_rule_is_replaced(folder):
    before = {file: file.read_bytes() for file in folder.iterdir()}
    other = optimizer_of(Net(), partial(Gains, horizon=5))
    with pytest.raises(UsageError, match=r"trained_on has 'accuracy': .*float\(x\)"):
        other.save_pretrained(folder, trained_on={"accuracy": np.float32(0.9)})
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_a_rule_that_was_not_written_to_its_end_is_none(folder, monkeypatch):
    """Phi of one rule beside the options of another would be a third one."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_evolve.pretrained.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        optimizer_of(Net(), partial(Gains, horizon=5)).save_pretrained(folder)
    with pytest.raises(UsageError, match=r"holds no rule: there is no config\.json"):
        LearnedOptimizer.from_pretrained(Net().named_parameters(), folder)


def test_an_undamaged_one_loads(folder):
    LearnedOptimizer.from_pretrained(Net().named_parameters(), folder)


def test_an_unknown_name_is_told_those_that_exist(tmp_path, monkeypatch):
    def load():
        LearnedOptimizer.from_pretrained(Net().named_parameters(), "no-such-rule")

    with pytest.raises(
        UsageError, match="'no-such-rule' is neither a folder nor a rule that comes"
    ):
        load()
    monkeypatch.setattr(pretrained, "_BUNDLED", tmp_path)
    optimizer_of(Net()).save_pretrained(tmp_path / "gains-small")
    with pytest.raises(UsageError, match=r"\(gains-small\)"):
        load()
    LearnedOptimizer.from_pretrained(Net().named_parameters(), "gains-small")


def test_files_that_are_no_checkpoints_of_ours(tmp_path):
    (tmp_path / "half.ckpt").write_bytes(b"PK\x03\x04half")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for name, said in (
        ("half.ckpt", "cannot be read"),
        ("missing.ckpt", "cannot be read"),
        ("other.ckpt", "holds no learned rule"),
    ):
        with pytest.raises(UsageError, match=said) as error:
            export(tmp_path / name, tmp_path / "rule")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "rule").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        save_rule(Gains({"w": torch.zeros(1)}), tmp_path / "file")


class Shrunk(MetaLearner):
    """A rule of a user's, with an option that JSON has no word for."""

    def __init__(self, params, *, shrink):
        super().__init__(params)
        self.shrink = shrink

    def forward(self, grads, params, state):
        return {n: -self.shrink(g) for n, g in grads.items()}, state._replace(step=state.step + 1)


def test_a_rule_of_the_users_own(tmp_path):
    model = Net()
    optimizer = LearnedOptimizer(model.named_parameters(), partial(Shrunk, shrink=torch.tanh))
    assert configuration(optimizer.rule)["class"] == f"{Shrunk.__module__}.Shrunk"
    optimizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="the option 'shrink' of Shrunk could not be saved"):
        load_rule(tmp_path)
    again = LearnedOptimizer.from_pretrained(model.named_parameters(), tmp_path, shrink=torch.tanh)
    train(model, again, steps=2)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -1.0, "0.1", torch.tensor(0.1)])
def test_a_rate_that_is_none_is_refused_before_a_rule_is_replaced(folder, alpha):
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UsageError, match="alpha is "):
        save_rule(optimizer_of(Net()).rule, folder, alpha=alpha)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_options_that_phi_does_not_fit_are_named():
    with pytest.raises(UsageError, match="of these options; leave out knots"):
        load_rule("general", knots=7)


def test_a_slash_at_the_end_of_a_name():
    assert load_rule("general/")[1] == load_rule("general")[1]


def test_what_may_not_be_read_is_not_called_damaged(folder, monkeypatch):
    real = type(folder).open

    def refuse(path, *given, **options):
        if path.name == "rule.safetensors":
            raise PermissionError(13, "Permission denied")
        return real(path, *given, **options)

    monkeypatch.setattr(type(folder), "open", refuse)
    with pytest.raises(UsageError, match=r"cannot be read .*; mend its rights"):
        load_rule(folder)


def test_a_tensor_that_is_larger_than_any(folder):
    config = json.loads((folder / "config.json").read_text())
    config["tensors"] = {"w": [10**30]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="a tensor is larger than any"):
        load_rule(folder)


def test_an_empty_history_can_be_saved(tmp_path):
    optimizer = LearnedOptimizer.from_pretrained(Net().named_parameters(), "general")
    assert optimizer.trained_on
    optimizer.save_pretrained(tmp_path / "r", trained_on={})
    assert load_rule(tmp_path / "r")[1]["trained_on"] == {}
