"""The table of held-out families, in small; and its arithmetic."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from lightning_evolve.evaluation.curves import Curves
from lightning_evolve.meta_learners import RelativeGains
from lightning_evolve.modules.building import build
from lightning_evolve.pretrained import save_rule

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
held_out = pytest.importorskip("held_out", reason="benchmarks/ is not beside tests/")


def curves(*losses):
    loss = np.array(losses, dtype=float)
    return Curves(tuple(range(loss.shape[1])), loss, 1 - loss / 10, loss[:, -1])


def test_steps_are_counted_to_the_lowest_loss_that_adam_has():
    adam = curves([4, 3, 2, 1, 3])
    twice = held_out.summary(curves([4, 1.5, 1, 1, 1]), adam)
    assert (twice["steps"], twice["ratio"]["mean"], twice["best_loss"]) == (2, 1.5, 1)
    never = held_out.summary(curves([4, 2, 1.5, 1.5, 1.5]), adam)
    assert (never["steps"], never["ratio"]["mean"]) == (None, 0)
    assert held_out.summary(adam, adam)["ratio"]["mean"] == 1
    diverged = held_out.summary(curves([4, 0.5, np.nan, np.nan, np.nan]), adam)
    assert (diverged["steps"], diverged["accuracy"]["mean"]) == (1, None)


def test_an_adam_that_only_gets_worse_is_met_at_the_first_step():
    worse = curves([4, 5, 6, 7, 8])
    assert held_out.summary(curves([4, 3, 2, 1, 1]), worse)["ratio"]["mean"] == 1
    assert held_out.summary(curves([4, 6, 4, 3, 2]), worse)["ratio"]["mean"] == 1


def test_a_cell_in_small(tmp_path, monkeypatch):
    cell = held_out.cells()["digits-cnn"]._replace(steps=4)
    monkeypatch.setattr(held_out, "cells", lambda: {"digits-cnn": cell})
    monkeypatch.setitem(held_out.FAMILY, "outer_steps", 2)
    stream = held_out.stream_of("digits-cnn", cell, None)
    theta = dict(build(cell.learner, stream.spec, 0).named_parameters())
    save_rule(RelativeGains(theta, horizon=3), tmp_path / "rule", alpha=0.3)
    options = Namespace(
        data=None,
        out=tmp_path,
        rules=[str(tmp_path / "rule")],
        family=True,
        seeds=2,
        tasks=2,
        tuning=1,
    )
    result = held_out.run("digits-cnn", options)
    assert result["tasks"] == 4
    methods = {
        "adam for lowest loss",
        "adam",
        "adam_groups",
        "adamw",
        "muon",
        *held_out.SINGLE,
        "rule",
        "family",
    }
    assert set(result["methods"]) == methods
    rule, family = (result["methods"][m]["loss"]["mean"] for m in ("rule", "family"))
    assert rule != family, "meta-training on the family has moved phi"
    again = held_out.run("digits-cnn", options)
    assert again | {"cpu_seconds": 0} == result | {"cpu_seconds": 0}
    (tmp_path / "digits-cnn.json").write_text(json.dumps(result))
    shown = held_out.table(tmp_path)
    assert "| digits-cnn | no learning |" in shown
    assert "rule, ratio: interquartile mean" in shown
    assert "rule, ratio_to adam at 0.001: interquartile mean" in shown
    assert "muon, ratio_to adam at 0.001" not in shown


def test_data_that_is_not_there_is_named():
    with pytest.raises(SystemExit, match="clinc150-lstm needs --data FOLDER with clinc150"):
        held_out.stream_of("clinc150-lstm", held_out.cells()["clinc150-lstm"], None)
