"""A small version of the benchmark of kills."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import kills


@pytest.mark.slow
def test_ten_kills(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = kills.kill(tmp_path, 10)
    assert found["kills"] == 10
    assert "promoted" in found["generations"]
