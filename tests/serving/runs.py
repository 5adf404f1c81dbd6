"""A small run to serve, with a journal and artifacts as evolve leaves them."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from lightning_evolve.data.encoders import Words
from lightning_evolve.evolution.artifacts import Artifacts
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.model import Model
from lightning_evolve.evolution.pretrained import Pretrained
from lightning_evolve.learners import LSTM

HOSTILE = "<img src=x onerror=\"document.title='taken over'\">"
CLASSES = ("sport", "money", HOSTILE)
TEXTS = {
    "sport": ["the team won the match", "a late goal in the cup final", "the player scored twice"],
    "money": ["the bank raised its rates", "shares fell on the market", "the price of oil rose"],
    HOSTILE: ["strange words about nothing", "nothing here is of a kind", "odd and strange words"],
}


def make_run(folder: Path, generations: int = 3) -> Path:
    """Makes a run whose last generation is the champion; all have models of their own.

    Args:
        folder: its directory, made here.
        generations: how many.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("processing:\n  new_classes: refuse\n")
    artifacts = Artifacts(folder / "artifacts")
    journal = Journal(folder / "journal.sqlite", create=True)
    with journal.writing():
        for number in range(generations):
            summary = {"new_accuracy": 0.7 + 0.07 * number, "old_accuracy": 0.8 - 0.01 * number}
            journal.execute(
                "INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, ?)",
                (
                    number,
                    number - 1 if number else None,
                    time.time(),
                    time.time(),
                    "200 records" if number else "founding",
                    "promoted" if number else "founded",
                    json.dumps([f"better on new data by {HOSTILE}"] if number else []),
                    model(number).save(artifacts),
                    json.dumps(summary),
                ),
            )
            journal.crown(number, "promoted" if number else "founded")
        moved = f"the share of {HOSTILE} rose from 0.1 to 0.4"
        journal.alarm(moved, {"time": time.time(), "kind": "classes", "message": moved})
    journal.close()
    return folder


def promote(run: Path, generation: int) -> None:
    """Makes a generation the champion, as another process does."""
    journal = Journal(run / "journal.sqlite")
    with journal.writing():
        journal.crown(generation, "rolled back")
    journal.close()


def model(seed: int) -> Model:
    """An LSTM that has learned the texts above."""
    texts = [text for some in TEXTS.values() for text in some]
    labels = torch.tensor([n for n, some in enumerate(TEXTS.values()) for _ in some])
    made = Pretrained(
        Words(min_frequency=1), partial(LSTM, hidden_size=16, embedding_size=16)
    ).model(texts, CLASSES, seed)
    inputs = made.encode(texts)
    optimizer = torch.optim.Adam(made.learner.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(made.learner(**inputs), labels).backward()
        optimizer.step()
    made.learner.eval()
    return made
