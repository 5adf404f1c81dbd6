"""A run killed at random moments and resumed ends where the uninterrupted one does, bit for bit.

``KILLS=10 pytest tests/modules/test_killed_runs.py`` kills more often than the suite has time for.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from lightning_evolve.cli import main
from tests.processes import Forked

KILLS = int(os.environ.get("KILLS", "3"))
CONFIG = """
model:
  class_path: EvolvingClassifier
  init_args:
    learner: {{class_path: CNN, init_args: {{channels: [3, 4]}}}}
    estimator: {{class_path: {estimator}}}
    theta: {theta}
    alpha: 0.01
    beta_schedule: cosine
    steps: 4
    measurements: 4
data:
  class_path: EpisodeStream
  init_args:
    source: digits
    encoder: {{class_path: Pixels, init_args: {{size: 8}}}}
    ways: 3
    shots: 2
    queries: 3
    tasks_per_step: 2
    steps_per_epoch: 10
    val_tasks: 2
    class_fractions: [0.4, 0.3, 0.3]
checkpoints: {{every_n_train_steps: 3}}
comparison: {{enabled: false}}
trainer: {{max_epochs: 3, accelerator: cpu, log_every_n_steps: 1}}
"""


def written(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theta", "estimator"),
    [
        ("episodic", "EvolutionStrategies"),
        ("persistent", "Unrolled"),
        ("episodic", "PersistentES, init_args: {window: 1}"),
    ],
)
def test_killed_and_resumed(tmp_path, monkeypatch, theta, estimator):
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG.format(theta=theta, estimator=estimator))

    def fit(*options):
        return Forked("fit", "--config", "c.yaml", *options, cwd=tmp_path)

    def finish(process):
        _, err = process.communicate()
        assert process.returncode == 0, err

    monkeypatch.chdir(tmp_path)
    # In this process, so that what it imports need not be imported in each fork.
    assert main(["fit", "--config", "c.yaml", "--run_dir=whole"]) == 0
    moments = random.Random(0)
    # By progress, past the first checkpoint, and not by the clock, which a busy machine stretches;
    # then some moment more.
    for rows in sorted(moments.sample(range(5, 24), KILLS)):
        process = fit("--run_dir=killed", "--ckpt_path=last")
        while written(tmp_path / "killed" / "metrics.csv") < rows:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.returncode == -signal.SIGKILL
    finish(fit("--run_dir=killed", "--ckpt_path=last"))
    for name in ("last", "best"):
        whole, killed = (
            torch.load(tmp_path / run / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for run in ("whole", "killed")
        )
        assert whole["global_step"] == killed["global_step"]
        for key, value in whole["state_dict"].items():
            assert torch.equal(value, killed["state_dict"][key]), key
        saved, again = (c["lightning_evolve"]["state"] for c in (whole, killed))
        if theta == "episodic":
            assert saved is again is None, "each task begins with a state of its own"
            continue
        assert saved["step"] == again["step"]
        for kind, tensors in saved["accumulators"].items():
            for key, value in tensors.items():
                assert torch.equal(value, again["accumulators"][kind][key]), key
    assert whole["state_dict"]["meta_learner.log_gains"].abs().sum() > 0
    csv = [(tmp_path / run / "metrics.csv").read_bytes() for run in ("whole", "killed")]
    assert csv[0] == csv[1]
    assert csv[0].count(b"\n") > 30
