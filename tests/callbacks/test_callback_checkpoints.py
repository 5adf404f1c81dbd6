from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_evolve.callbacks import AtomicCheckpointIO, Checkpoints
from lightning_evolve.errors import UsageError


def test_a_checkpoint_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "checkpoints/last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def half(content: object, file) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space left"):
        io.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_while_it_is_written_nothing_looks_like_a_checkpoint(tmp_path: Path, monkeypatch) -> None:
    seen = []

    def look(content: object, file) -> None:
        seen.extend(tmp_path.glob("[!.]*"))

    monkeypatch.setattr(torch, "save", look)
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert seen == []
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_every_no_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="every_n_train_steps is 0"):
        Checkpoints(every_n_train_steps=0)
