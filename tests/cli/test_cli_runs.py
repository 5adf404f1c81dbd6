from __future__ import annotations

import csv
import json
import subprocess
import sys
from functools import wraps
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from lightning_evolve.cli import lightning_cli, run_directory
from lightning_evolve.cli.run_directory import newest


@pytest.fixture
def built(monkeypatch):
    """Calls of the command line leave model and data here."""
    seen = {}

    def keep(self) -> None:
        seen.update(model=self.model, data=self.datamodule)

    monkeypatch.setattr(lightning_cli.EvolveCLI, "after_instantiate_classes", keep)
    return seen


def files(path: str) -> list[str]:
    return sorted(p.name for p in Path(path).iterdir() if not p.name.startswith("."))


def test_a_run_has_a_directory_of_its_own(call) -> None:
    first = call("fit", "--config", "tiny.yaml")
    assert first.code == 0
    assert first.out.splitlines()[0] == "run directory: runs/tiny"
    assert "step 6/8" in first.err
    assert files("runs/tiny") == ["checkpoints", "config.yaml", "metrics.csv"]
    assert files("runs/tiny/checkpoints") == ["best.ckpt", "last.ckpt"]
    before = Path("runs/tiny/metrics.csv").read_bytes()
    for number in (2, 3):
        assert f"run directory: runs/tiny-{number}\n" in call("fit", "-c", "tiny.yaml").out
    assert Path("runs/tiny/metrics.csv").read_bytes() == before
    assert newest("tiny") == Path("runs/tiny-3")


def test_metrics_count_outer_steps(call) -> None:
    call("fit", "--config", "tiny.yaml", "--trainer.log_every_n_steps", "2")
    with Path("runs/tiny/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [2, 4, 6, 8]
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [6]
    assert list(rows[0])[:2] == ["step", "epoch"]


def test_the_written_configuration_makes_the_same_run(call) -> None:
    call("fit", "--config", "tiny.yaml", "--alpha", "0.05", "--seed", "3")
    written = yaml.safe_load(Path("runs/tiny/config.yaml").read_text())
    assert written["seed_everything"] == 3
    assert written["model"]["init_args"]["alpha"] == 0.05
    assert not {"ckpt_path", "run_dir", "config"} & set(written)
    call("fit", "--config", "runs/tiny/config.yaml", "--run_dir", "again")
    for name in ("config.yaml", "metrics.csv"):
        assert Path("again", name).read_text() == Path("runs/tiny", name).read_text()


def test_options_override_config_files_in_any_order(call, built) -> None:
    Path("over.yaml").write_text("model: {init_args: {alpha: 0.2}}\n")
    call("fit", "--alpha=0.3", "--config", "tiny.yaml", "--data.source", "x", "-c", "over.yaml")
    assert built["model"].alpha == 0.3
    assert built["data"].source == "x"
    assert Path("runs/over").is_dir(), "the last config file names the run"
    call("fit", "--config", "tiny.yaml", "--config", "over.yaml")
    assert built["model"].alpha == 0.2


def test_one_seed_for_model_and_data(call, built) -> None:
    call("fit", "--config", "tiny.yaml")
    assert (built["model"].seed, built["data"].seed) == (0, 0)
    call("fit", "--config", "tiny.yaml", "--seed", "7")
    assert (built["model"].seed, built["data"].seed) == (7, 7)
    # A class without a seed is left alone.
    assert call("fit", "--config", "tiny.yaml", "--data", "NoSeed", "--seed=7").code == 0
    assert type(built["data"]).__name__ == "NoSeed"


def test_factories_from_short_names(call, built) -> None:
    from lightning_evolve.learners import Head
    from lightning_evolve.tasks import DataSpec

    meta = "--model.meta_learner"
    call("fit", "-c", "tiny.yaml", meta, "Adam", f"{meta}.eps", "0.5", "--seed", "1")
    spec = DataSpec(3, shape=(4,))
    learner = built["model"].factory(spec)
    assert isinstance(learner, Head)
    assert learner.head.in_features == 8
    rule = built["model"].meta_learner_factory({"w": torch.zeros(2)})
    assert type(rule).__module__ == "lightning_evolve.meta_learners.adam"
    assert rule.eps == 0.5
    # Another class instead does not take over what was set for the first.
    call("fit", "-c", "tiny.yaml", meta, "Adam", f"{meta}.eps", "0.5", meta, "SGD")
    assert type(built["model"].meta_learner_factory({"w": torch.zeros(2)})).__name__ == "SGD"


def test_defaults_of_one_optimizer_do_not_leak_into_another(call, built) -> None:
    Path("plain.yaml").write_text(
        """
        model:
          class_path: Classifier
          init_args:
            learner: {class_path: Head}
            optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.5}}
        """
    )
    call("fit", "-c", "tiny.yaml", "-c", "plain.yaml", "--trainer.fast_dev_run=true")
    (group,) = built["model"].optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.5, 0, 0)


def test_print_config_is_complete_and_trains_nothing(call) -> None:
    got = call("fit", "--config", "tiny.yaml", "--print_config")
    assert got.code == 0
    shown = yaml.safe_load(got.out)
    assert shown["trainer"]["inference_mode"] is False
    assert shown["checkpoints"]["every_n_train_steps"] == 100
    assert not Path("runs").exists()


def test_a_directory_that_is_there_and_empty_is_used(call) -> None:
    Path("mine").mkdir()
    assert call("fit", "--config", "tiny.yaml", "--run_dir", "mine").code == 0
    assert "config.yaml" in files("mine")


def test_ctrl_c_tells_how_to_go_on(call) -> None:
    arguments = ["--checkpoints.every_n_train_steps=2", "--run_dir=my run"]
    got = call("fit", "-c", "tiny.yaml", *arguments, "--model.interrupt_at=3")
    assert got.code == 130
    message = got.err.splitlines()[-1]
    assert message.endswith("lightning-evolve fit --run_dir 'my run' --ckpt_path last")
    assert "Traceback" not in got.err
    resumed = call("fit", "--run_dir", "my run", "--ckpt_path", "last", "--model.interrupt_at=-1")
    assert resumed.code == 0
    assert call("fit", "-c", "tiny.yaml").code == 0
    assert Path("my run/metrics.csv").read_text() == Path("runs/tiny/metrics.csv").read_text()


@pytest.mark.parametrize("command", ["validate", "test"])
def test_scores_go_to_the_run_of_the_checkpoint(command, call) -> None:
    call("fit", "--config", "tiny.yaml")
    call("fit", "--config", "tiny.yaml")
    before = files("runs/tiny-2")
    prefix = "val" if command == "validate" else "test"
    for name, arguments in (
        (f"{command}.json", ["--config", "tiny.yaml"]),
        (f"{command}-2.json", ["--config", "tiny.yaml", "--ckpt_path", "last"]),
        (f"{command}-3.json", ["--run_dir", "runs/tiny-2"]),
        (f"{command}-4.json", ["--ckpt_path", "runs/tiny-2/checkpoints/best.ckpt"]),
    ):
        got = call(command, *arguments)
        assert got.code == 0
        assert f"in runs/tiny-2/{name}" in got.out
        scores = json.loads(Path("runs/tiny-2", name).read_text())
        assert 0 < scores["metrics"][f"{prefix}/accuracy"] <= 1
        kind = "last" if "last" in arguments else "best"
        assert scores["checkpoint"] == f"runs/tiny-2/checkpoints/{kind}.ckpt"
    names = [f"{command}.json", *(f"{command}-{n}.json" for n in (2, 3, 4))]
    assert files("runs/tiny-2") == sorted([*before, *names])
    assert call(command, "-c", "tiny.yaml", "--run_dir=runs/tiny").code == 0
    assert f"{command}.json" in files("runs/tiny")


def test_test_takes_the_last_state_where_no_validation_chose_a_best(call) -> None:
    call("fit", "--config", "tiny.yaml", "--trainer.limit_val_batches=0")
    assert files("runs/tiny/checkpoints") == ["last.ckpt"]
    assert call("test", "--config", "tiny.yaml").code == 0
    assert json.loads(Path("runs/tiny/test.json").read_text())["checkpoint"].endswith("last.ckpt")


def test_predictions_of_tasks(call) -> None:
    call("fit", "--config", "tiny.yaml")
    for name in ("predictions.csv", "predictions-2.csv"):
        assert f"27 predictions in runs/tiny/{name}" in call("predict", "-c", "tiny.yaml").out
        with Path("runs/tiny", name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["task", "classes", "row", "text", "predicted", "probability"]
        assert [row["row"] for row in rows] == [str(n) for n in range(9)] * 3
        assert rows[1]["text"] == "row 1, with a comma"
        assert sum(row["predicted"] == str(int(row["row"]) % 3) for row in rows) > 13
        assert all(1 / 3 < float(row["probability"]) <= 1 for row in rows)


def test_the_default_callbacks_give_way(call, monkeypatch) -> None:
    trainers = []
    fit = L.Trainer.fit

    @wraps(fit)  # the parser reads its signature
    def keep(self, *args, **kwargs):
        trainers.append(self)
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(L.Trainer, "fit", keep)
    arguments = ["--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"]
    own = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    got = call("fit", "-c", "tiny.yaml", *arguments, *own)
    assert got.code == 0, got
    assert got.err == ""
    names = [type(callback).__name__ for callback in trainers[0].callbacks]
    assert names[:2] == ["EarlyStopping", "Metrics"]
    assert "RichProgress" not in names
    assert not Path("runs/tiny/checkpoints").exists()


def test_a_directory_in_which_another_process_trains_is_left_alone(call, tiny) -> None:
    assert call("fit", "--config", "tiny.yaml", "--run_dir=here").code == 0
    assert not run_directory.locked(tiny / "here"), "a run that has ended holds nothing"
    program = (
        "import sys; from pathlib import Path; from lightning_evolve.cli import run_directory; "
        "lock = run_directory.hold(Path('here')); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert run_directory.locked(tiny / "here")
        before = (tiny / "here/metrics.csv").read_bytes()
        again = ("fit", "--config", "tiny.yaml", "--run_dir=here", "--ckpt_path=last")
        mistake = call(*again, "--trainer.max_steps=9").mistake
        assert mistake == (
            "another process trains in here; wait for it, or choose another --run_dir"
        )
        assert (tiny / "here/metrics.csv").read_bytes() == before
        other.kill()
    assert call(*again, "--trainer.max_steps=9").code == 0
