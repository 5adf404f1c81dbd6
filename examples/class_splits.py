"""Few-shot benchmarks share out a dataset's classes by name: makes a folder for each such split.

All rows of a dataset are read, from whichever of its files, and written again into train.jsonl,
validation.jsonl and test.jsonl by class. SPLITS is a JSON file such as
``{"splits": {"01": {"train": [class, ...], "valid": [...], "test": [...]}, "02": ...}}``.

    python examples/class_splits.py DATASET SPLITS OUT
    lightning-evolve fit --config experiments/fewshot_minilm.yaml --data.source OUT/01
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lightning_evolve.data import load
from lightning_evolve.data.cache import Cache


def main() -> None:
    """Reads the command line, the dataset and the lists, and writes the folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a file, a folder, or the name of a dataset of the hub")
    parser.add_argument("splits", type=Path, help="JSON file of the classes of each split")
    parser.add_argument("out", type=Path, help="folder to write into")
    options = parser.parse_args()
    parts = load(options.dataset, cache=Cache()).values()
    rows = [pair for part in parts for pair in zip(part.texts or [], part.labels, strict=True)]
    for name, classes_of in json.loads(options.splits.read_text())["splits"].items():
        folder = options.out / name
        folder.mkdir(parents=True)
        for split, classes in classes_of.items():
            lines = (json.dumps({"text": t, "label": c}) for t, c in rows if c in set(classes))
            (folder / f"{split}.jsonl").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
