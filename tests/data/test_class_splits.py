"""The example that makes folders of a benchmark's lists of classes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from lightning_evolve.streams import EpisodeStream

EXAMPLE = Path(__file__).parents[2] / "examples" / "class_splits.py"


def test_each_class_is_where_the_list_says_with_all_of_its_rows(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for split, numbers in (("train", range(3)), ("test", range(3, 5))):
        rows = [{"text": f"word{c} text {n}", "label": f"c{c}"} for c in range(7) for n in numbers]
        (source / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lists = {
        "01": {"train": ["c0", "c1"], "valid": ["c2", "c3"], "test": ["c4", "c5"]},
        "02": {"train": ["c4", "c5"], "valid": ["c0", "c1"], "test": ["c2", "c3"]},
    }
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"source": "somewhere", "splits": lists}))
    monkeypatch.setattr(
        sys, "argv", ["class_splits", str(source), str(splits), str(tmp_path / "out")]
    )
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    for name, classes in lists.items():
        stream = EpisodeStream(
            source=str(tmp_path / "out" / name),
            ways=2,
            shots=2,
            queries=3,
            cache_dir=str(tmp_path / "cache"),
        )
        stream.setup()
        held = {
            split: {stream.table.class_names[c] for c in stream.table.by_class(rows)}
            for split, rows in stream.splits.items()
        }
        assert held == {
            "train": set(classes["train"]),
            "validation": set(classes["valid"]),
            "test": set(classes["test"]),
        }
        assert [len(rows) for rows in stream.splits.values()] == [10, 10, 10]
