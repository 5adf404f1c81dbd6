from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

BARE = {"model": {"class_path": "TinyModel"}, "data": {"class_path": "TinyTasks"}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modle.alpha=1"], "unknown key 'modle.alpha'"),
        (["--alhpa=1"], "unknown key 'alhpa'; did you mean 'alpha'?"),
        (["--trainer.max_stpes=1"], "unknown key 'trainer.max_stpes'; did you mean"),
        (["--trainer.max_step=1"], "unknown key 'trainer.max_step'; did you mean"),
        (["--model.alhpa=1"], "unknown key 'alhpa'; did you mean 'alpha'?"),
        (["--model.learner.width=1"], "model.learner: unknown key 'width'; Head takes hidden_size"),
        (["--model.meta_learner=Adamm"], "no class 'Adamm'; did you mean 'Adam'?"),
        (["--model=nowhere.Model"], "'nowhere.Model' does not import: No module named 'nowhere'"),
        (["--data=TinyTask"], "data: there is no class 'TinyTask'"),
        (["--alpha=much"], "alpha: expected float, got much"),
        (["--alpha=0"], "alpha is 0.0; give a finite number above 0"),
        (["--alpha"], "--alpha needs a value"),
        (["--run_dir"], "--run_dir needs a value"),
        (["--beta=0.1"], "unknown key 'beta'; TinyModel takes learner, meta_learner, "),
        (["--seed=x"], "seed_everything: expected bool or int, got x"),
        (["--data.seed=3"], "--data.seed cannot be set alone; use --seed"),
        (["--wandb=on"], "wandb.mode: expected one of 'off', 'offline', 'online', got"),
        (["--checkpoints.every_n_train_steps=0"], "every_n_train_steps is 0; give 1 or more"),
        (["--data.fails=init"], "fails is init; choose another"),
        (["--data.fails=setup"], "fails is setup; choose another"),
        (["--trainer.max_steps=-5"], "`max_steps` must be"),
        (["--ckpt_path=best"], "fit cannot go on from 'best'; give --ckpt_path last"),
        (["--trainer.default_root_dir=here"], "has no effect here; give --run_dir DIR"),
        (["--ckpt_path=no.ckpt"], "there is no checkpoint no.ckpt; give"),
        (["--run_dir=tiny.yaml"], "cannot write to tiny.yaml: file exists; choose another"),
        (["--run_dir=tiny.yaml/run"], "cannot write to tiny.yaml/run: "),
        (["--run_dir=/proc/run"], "cannot write to /proc/run: "),
        (["--config=none.yaml"], "cannot read the config file none.yaml: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, said, call) -> None:
    assert said in call("fit", "--config", "tiny.yaml", *arguments).mistake
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; it must hold keys"),
        (b"- a\n", "is a list; it must hold keys"),
        (b"model: [a\n b: {", "is not valid YAML: line 2, column"),
        (b"model: \xff", "is not UTF-8 (byte 7)"),
        (yaml.safe_dump(BARE | {"trainre": {"max_steps": 1}}).encode(), "unknown key 'trainre"),
        (yaml.safe_dump(BARE).encode(), "model: TinyModel needs learner"),
        (b"data: {class_path: TinyTasks}\n", "no model; give --config FILE"),
        (b"data: {class_path: TinyTasks, init_args: {seed: 1}}\n", "set seed_everything (or"),
        (b"wandb: online\n", "wandb takes keys; write wandb: {mode: online}"),
        (b"wandb: off\n", "write wandb: {mode: off}"),
        (b"model: {class_path: TinyModel, init_args: {learner: {class_path: LSTN}}}", "'LSTM'?"),
        (
            b"model: {class_path: TinyModel, init_args: {learner: "
            b"{class_path: LSTM, init_args: {hiden_size: 3}}}}",
            "model.learner: unknown key 'hiden_size'; did you mean 'hidden_size'?",
        ),
    ],
)
def test_a_mistake_in_a_config_file(content, said, call) -> None:
    Path("bad.yaml").write_bytes(content)
    assert said in call("fit", "--config", "bad.yaml").mistake
    assert not Path("runs").exists()


def test_no_config_at_all(call) -> None:
    assert call("fit").mistake == "no model and no data; give --config FILE"


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_run_that_is_not_there(call, command) -> None:
    assert "there is no run runs/mien" in call(command, "--run_dir", "runs/mien").mistake
    assert not Path("runs").exists()


def test_an_existing_directory_is_not_touched(call) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep")
    mistake = call("fit", "--config", "tiny.yaml", "--run_dir", "mine").mistake
    assert mistake.startswith("mine exists and is not empty; choose another --run_dir")
    assert "--ckpt_path last" in mistake
    resumed = call("fit", "--config", "tiny.yaml", "--run_dir", "mine", "--ckpt_path", "last")
    assert "mine holds notes.txt and no config.yaml, so it is not a run" in resumed.mistake
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_only_what_was_made_is_removed(call) -> None:
    Path("mine").mkdir()
    arguments = ["--config", "tiny.yaml", "--data.fails", "setup"]
    assert call("fit", *arguments, "--run_dir", "mine/new/run").code == 2
    assert list(Path("mine").iterdir()) == []
    assert call("fit", *arguments, "--run_dir", "other/new/run").code == 2
    assert not Path("other").exists()


def test_an_empty_directory_that_was_there_stays(call) -> None:
    Path("mine").mkdir()
    arguments = ["--config", "tiny.yaml", "--run_dir", "mine"]
    assert call("fit", *arguments, "--data.fails", "setup").code == 2
    assert Path("mine").is_dir()


@pytest.mark.parametrize("command", ["fit", "test"])
def test_bad_checkpoints(command, call) -> None:
    assert call("fit", "--config", "tiny.yaml").code == 0
    checkpoints = Path("runs/tiny/checkpoints")
    last = (checkpoints / "last.ckpt").read_bytes()
    (checkpoints / "last.ckpt").write_bytes(last[: len(last) // 2])
    got = call(command, "--config", "tiny.yaml", "--ckpt_path", "last")
    assert "runs/tiny/checkpoints/last.ckpt is incomplete or no checkpoint; give" in got.mistake
    assert "best.ckpt" in got.mistake
    for content, said in (
        ({"weights": torch.zeros(1)}, "is no checkpoint of a training run"),
        (Path, "holds other things than tensors"),
    ):
        torch.save(content, "foreign.ckpt")
        assert said in call(command, "--config", "tiny.yaml", "--ckpt_path=foreign.ckpt").mistake
    assert [path.name for path in Path("runs").iterdir()] == ["tiny"]


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluating_without_a_run(command, call) -> None:
    assert "there is no run runs/tiny; fit it first" in call(command, "-c", "tiny.yaml").mistake
    assert not Path("runs").exists()


def test_a_monitor_that_is_not_logged(call) -> None:
    got = call("fit", "-c", "tiny.yaml", "--checkpoints.monitor=val/f2")
    assert got.err.splitlines()[-1].endswith("choose one of val/accuracy, val/loss")
    assert got.code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0"], "--seeds is 0; give how many"),
        (["--seeds", "two"], "--seeds is two; give how many"),
        (["--seed", "2"], "repeat chooses --seed for each run; leave it out"),
        (["--ckpt_path", "last"], "repeat chooses --ckpt_path for each run"),
        (["--config", "none.yaml"], "cannot read the config file none.yaml"),
    ],
)
def test_mistakes_of_repeat(arguments, said, call) -> None:
    assert said in call("repeat", "--config", "tiny.yaml", *arguments).mistake
    assert not Path("runs").exists()


def test_repeat_needs_a_config(call) -> None:
    assert "give --config FILE" in call("repeat", "--seeds", "2").mistake


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trainer.strategy=fsdp"], "`fsdp` requires a GPU accelerator"),
        (["--trainer.strategy=fastest"], "invalid strategy name"),
        (["--trainer.accelerator=gpu"], "gpu"),
    ],
)
def test_a_trainer_that_this_machine_has_not(arguments, said, call, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert said in call("fit", "-c", "tiny.yaml", *arguments).mistake
    assert not Path("runs").exists()
