"""Every mistake of the list gets one line with the value and the remedy, exit code 2, no trace."""

from __future__ import annotations

import errno
import gzip
import sys

import pytest
import torch

from lightning_evolve.cli import main

CONFIG = """
model:
  class_path: EvolvingClassifier
  init_args:
    learner: {class_path: LSTM, init_args: {embedding_size: 4, hidden_size: 4}}
    estimator: {class_path: Unrolled}
    steps: 2
data:
  class_path: EpisodeStream
  init_args: {source: texts.csv, ways: 2, shots: 2, queries: 2, class_fractions: [0.4, 0.3, 0.3]}
comparison: {enabled: false}
trainer: {max_steps: 2, accelerator: cpu, limit_val_batches: 1}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a configuration and a file of texts that work."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    rows = [f"word{n} of c{c},c{c}" for c in range(8) for n in range(6)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]))
    return tmp_path


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fit(*options, command="fit"):
    return main([command, "--config", "c.yaml", *options])


def test_without_a_mistake_it_runs(place):
    assert fit() == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.alhpa", "1"], "alhpa"),
        (["--model.learner", "LSTMM"], "LSTMM"),
        (["--model.meta_learner", "no.such.Rule"], "no.such.Rule"),
        (["--data.source", "missing.csv"], "'missing.csv' does not exist"),
        (["--data.source", "empty.csv"], "empty.csv"),
        (["--data.text_column", "body"], "no column 'body': set text_column to one of text, label"),
        (["--data.label_column", "klass"], "no column 'klass': set label_column to one of"),
        (["--data.ways", "9"], "9"),
        (["--data.shots", "5"], "6"),
        (["--alpha", "-1"], "alpha is -1"),
        (["--alpha", "nan"], "alpha: expected float, got nan"),
        (["--beta", "inf"], "beta: expected float, got inf"),
        (["--beta", "0"], "beta is 0"),
        (["--alpha", "null"], "model.alpha is null"),
        (["--model.theta", "null"], "model.theta is null"),
        (["--data.shots", "null"], "data.shots is null"),
        (["--seed", "-1"], "--seed is -1"),
        (["--data.split_seed", "4294967296"], "split_seed is 4294967296"),
        (["--data.source", ""], "source is empty"),
        (["--model.adapt", "[]"], "adapt: [] leaves no parameter"),
        (["--model.adapt", "['!head']"], "adapt: ['!head'] leaves no parameter"),
        (["--trainer.devices", "-1"], "devices"),
        (
            [
                "--model.estimator",
                "{class_path: ActorCritic, init_args: {rollouts: 2.5}}",
                "--model.meta_learner",
                "Controller",
            ],
            "rollouts: expected int, got 2.5",
        ),
        (["--steps", "0"], "steps is 0"),
        (["--model.estimator.truncation", "3"], "truncation is 3 and there are 2 inner steps"),
        (["--model.estimator.checkpoint", "-1"], "checkpoint is -1"),
        (["--model.estimator", "{class_path: PersistentES, init_args: {window: 3}}"], "1, 2"),
        (
            ["--model.estimator", "{class_path: Reinforce, init_args: {population: 1}}"],
            "population is 1",
        ),
        (
            ["--model.estimator", "{class_path: EvolutionStrategies, init_args: {sigma: 0}}"],
            "sigma is 0",
        ),
        (
            ["--model.estimator", "{class_path: EvolutionStrategies, init_args: {sigma: .inf}}"],
            "sigma",
        ),
        (["--model.meta_learner", "{class_path: Adam, init_args: {betas: [1, 0.9]}}"], "betas is"),
        (["--model.meta_learner", "{class_path: Gains, init_args: {eps: -1}}"], "eps is -1"),
        (["--model.meta_learner", "{class_path: CoordinateMLP, init_args: {scale: 0}}"], "scale"),
        (["--model.estimator", "Implicit"], "give learn_init: true"),
        (["--model.estimator", "Reptile", "--model.learn_init", "true"], "phi of Gains"),
        (["--model.reward", "Accuracy"], "EvolutionStrategies"),
        (["--data.source", "latin.csv"], "latin.csv"),
        (["--data.source", "cut.csv.gz"], "cut.csv.gz"),
        (["--data.source", "digits"], "LSTM reads text"),
        (["--run_dir", "texts.csv/run"], "texts.csv"),
        (["--comparison.points", "3"], "points is 3"),
        (["--model.adapt", "[encoder.*]"], "'encoder.*' names no parameter"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(place, capfd, options, said):
    (place / "empty.csv").write_text("text,label\n")
    (place / "latin.csv").write_bytes("text,label\nétude,a\n".encode("latin-1"))
    whole = gzip.compress((place / "texts.csv").read_bytes())
    (place / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    before = files(place)
    try:
        code = fit(*options)
    except SystemExit as stop:
        code = stop.code
    error = capfd.readouterr().err.strip()
    assert code == 2
    last = error.splitlines()[-1]
    assert last.startswith("lightning-evolve: error: ")
    assert said in last
    assert "Traceback" not in error
    assert files(place) == before


def test_a_label_that_only_the_test_set_has(place, capfd):
    folder = place / "folder"
    folder.mkdir()
    rows = [f"word{n} of c{c},c{c}" for c in range(2) for n in range(20)]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]))
    (folder / "test.csv").write_text("text,label\nsomething,surprise\n")
    options = ["--data", "BatchStream", "--data.source", "folder", "--data.batch_size", "2"]
    assert fit(*options, "--model.theta", "persistent") == 2
    assert "'surprise'" in capfd.readouterr().err.splitlines()[-1]


def test_checkpoints_of_others_and_halves(place, capfd):
    assert fit("--run_dir", "run") == 0
    before = files(place / "run")
    assert fit("--run_dir", "run") == 2
    assert "run" in capfd.readouterr().err.splitlines()[-1]
    assert files(place / "run") == before
    other = ["--model.learner.init_args.hidden_size", "5"]
    assert fit("--run_dir", "run", "--ckpt_path", "last", *other) == 2
    assert "another model" in capfd.readouterr().err.splitlines()[-1]
    last = place / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    assert fit("--run_dir", "run", "--ckpt_path", "last", "--trainer.max_steps", "3") == 2
    assert "last.ckpt" in capfd.readouterr().err.splitlines()[-1]


def test_a_key_that_is_there_twice(place, capfd):
    (place / "c.yaml").write_text(CONFIG.replace("    steps: 2\n", "    steps: 2\n    steps: 7\n"))
    assert fit() == 2
    assert "c.yaml is not valid YAML: line 8, column 5: the key 'steps' is there twice" in (
        capfd.readouterr().err
    )


def test_classes_of_the_users_own_in_the_current_folder(place, capfd, monkeypatch):
    """As ``python -m`` finds them."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(place))])
    (place / "my_own_learner.py").write_text(
        "from lightning_evolve.learners import LSTM\nclass Mine(LSTM):\n    pass\n"
    )
    options = "{class_path: my_own_learner.Mine, init_args: {embedding_size: 4, hidden_size: 4}}"
    assert fit("--model.learner", options) == 0
    (place / "my_own_module.py").write_text(
        "from torch import nn\nclass Plain(nn.Linear):\n    def __init__(self, spec):\n"
        "        super().__init__(2, 2)\n"
    )
    assert fit("--model.learner", "my_own_module.Plain", "--run_dir", "plain") == 2


def test_a_checkpoint_at_its_end_trains_nothing_and_says_so(place, capfd):
    assert fit("--run_dir", "one") == 0
    assert "nothing was trained" not in capfd.readouterr().out
    assert fit("--run_dir", "two", "--ckpt_path", "one/checkpoints/last.ckpt") == 0
    said = capfd.readouterr().out
    assert "nothing was trained: one/checkpoints/last.ckpt is at step 2" in said
    assert fit("--run_dir", "one", "--ckpt_path", "last", "--trainer.max_steps", "3") == 0
    assert "nothing was trained" not in capfd.readouterr().out


def test_a_full_disk_is_told_in_a_line(place, capfd, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "last.ckpt")

    monkeypatch.setattr("lightning_evolve.callbacks.checkpoints.torch.save", full)
    assert fit() == 2
    assert "cannot write last.ckpt: no space left on device; make room" in capfd.readouterr().err


def test_the_best_of_another_metric_is_none_of_this_one(place):
    often = ["--trainer.val_check_interval", "1"]
    assert fit("--run_dir", "one", *often) == 0
    last = place / "one" / "checkpoints" / "last.ckpt"

    def best():
        saved = torch.load(last, weights_only=True)["callbacks"]
        return next(s for n, s in saved.items() if n.startswith("Checkpoints"))

    first = best()
    assert first["best"] > 0
    again = ["--run_dir", "one", "--ckpt_path", "last", "--trainer.max_steps", "4", *often]
    accuracy = ["--checkpoints.monitor", "val/accuracy", "--checkpoints.mode", "max"]
    assert fit(*again, *accuracy) == 0
    assert 0 <= best()["best"] <= 1
    assert best()["monitor"] == "val/accuracy"
