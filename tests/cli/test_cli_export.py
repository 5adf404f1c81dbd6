"""export: the rule of a run as a folder, and one line for whatever is no such run."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_evolve.cli import main
from lightning_evolve.meta_learners import Gains
from lightning_evolve.pretrained import load_rule
from tests.modules.small import module, stream, trainer


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(model, folder):
    """A run's directory with what a fit of this model has left after two steps."""
    fitting = trainer(folder, max_steps=2, enable_checkpointing=False, limit_val_batches=0)
    fitting.fit(model, datamodule=stream())
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    fitting.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return model


def test_the_rule_of_the_best_checkpoint_or_else_the_last(place, capsys):
    model = run_of(module(meta_learner=partial(Gains, per="role", horizon=2)), place / "run")
    assert main(["export", "run", "rule"]) == 0
    said = capsys.readouterr().out
    assert "run/checkpoints/last.ckpt is in rule" in said
    rule, config = load_rule("rule")
    assert torch.equal(rule.log_gains, model.meta_learner.log_gains)
    assert rule.log_gains.abs().max() > 0
    assert config["trained_on"]["outer_steps"] == 2
    # What it says to do next works.
    names = {"model": nn.Sequential(nn.Linear(3, 2))}
    program = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    with pytest.warns(UserWarning, match="learned nothing about"):
        exec("\n".join(program), names)
    assert torch.equal(names["optimizer"].rule.log_gains, rule.log_gains)

    best = place / "run" / "checkpoints" / "best.ckpt"
    content = torch.load(best.with_name("last.ckpt"), weights_only=True)
    content["state_dict"]["meta_learner.log_gains"].fill_(0.25)
    torch.save(content, best)
    assert main(["export", "run", "rule"]) == 0  # the rule that is there is replaced
    assert "best.ckpt" in capsys.readouterr().out
    assert load_rule("rule")[0].log_gains.eq(0.25).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "takes a run and a folder, and got 0 arguments"),
        (["run"], "got 1 arguments"),
        (["run", "new", "third"], "got 3 arguments"),
        (["--run_dir", "run"], "has no option --run_dir"),
        (["nothing", "new"], "there is no run nothing"),
        (["run/config.yaml", "new"], "there is no run run/config.yaml"),
        (["other", "new"], "other is no run: it has no config.yaml"),
        (["young", "new"], "young has no checkpoint yet; go on training by: lightning-evolve fit"),
        (["half", "new"], "half/checkpoints/best.ckpt cannot be read"),
        (["plain", "new"], "plain/checkpoints/last.ckpt holds no learned rule"),
        (["run", "other"], "other exists and holds no rule"),
        (["run", "run"], "run exists and holds no rule"),
        (["run", "run/config.yaml"], "run/config.yaml exists and holds no rule"),
        (["run", "run/config.yaml/rule"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(place, capsys, arguments, said):
    for name in ("run", "young", "half", "plain"):
        (place / name / "checkpoints").mkdir(parents=True)
        (place / name / "config.yaml").write_text("")
    (place / "other").mkdir()
    (place / "other" / "thesis.tex").write_text("years of work")
    (place / "half" / "checkpoints" / "best.ckpt").write_bytes(b"PK\x03\x04half")
    torch.save({"state_dict": {}}, place / "plain" / "checkpoints" / "last.ckpt")
    rule = {
        "format": 1,
        "lightning_evolve": "0",
        "class": "Adam",
        "class_version": 1,
        "options": {},
        "options_not_saved": [],
        "tensors": {},
        "alpha": 0.1,
        "trained_on": {},
    }
    saved = {"state_dict": {}, "global_step": 3, "lightning_evolve": {"rule": rule}}
    torch.save(saved, place / "run" / "checkpoints" / "best.ckpt")
    before = sorted(place.rglob("*"))
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(place.rglob("*")) == before
