"""What the tests of kills run in processes of their own; imports nothing that takes long."""

import itertools
import sys
from pathlib import Path

from lightning_evolve.evolution.collection import Feedback, WatchedFolder, collect
from lightning_evolve.evolution.feedback import FeedbackStore, Prediction
from lightning_evolve.evolution.journal import Journal


def ingest(run: Path) -> None:
    """Collects until all is there, then says so."""
    journal = Journal(run / "journal.sqlite", create=True)
    store = FeedbackStore(run / "service.sqlite")
    folder = WatchedFolder(str(run / "inbox"), settle_seconds=0)
    collect(journal, [folder, Feedback(store)])
    print("done", flush=True)


def give(run: Path) -> None:
    """Logs answers and corrects them for ever, and tells each one that was acknowledged."""
    store = FeedbackStore(run / "service.sqlite")
    for number in itertools.count(store.count("feedback")):
        answer = Prediction(f"p{number}", f"text {number}", "a", 0.5, {"a": 0.5}, 0, 0.0)
        store.log_predictions([answer])
        print(f"logged p{number}", flush=True)
        store.give(f"p{number}", "b", "anna")
        print(f"given p{number}", flush=True)


def write(run: Path, name: str, count: int) -> None:
    """One of several processes of a server."""
    store = FeedbackStore(run / "service.sqlite")
    for number in range(count):
        identity = f"{name}-{number}"
        store.log_predictions([Prediction(identity, identity, "a", 0.5, {"a": 0.5}, 0, 0.0)])
        store.give(identity, "b", name)


if __name__ == "__main__":
    assert not {"torch", "lightning", "pandas", "datasets", "datasketch"} & set(sys.modules)
    task, run, *others = sys.argv[1:]
    if task == "write":
        write(Path(run), others[0], int(others[1]))
    else:
        {"ingest": ingest, "give": give}[task](Path(run))
