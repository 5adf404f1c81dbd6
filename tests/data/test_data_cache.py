from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lightning_evolve.data.cache import Cache, Entry
from lightning_evolve.errors import UsageError


class Maker:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        tensors = {
            "ids": torch.arange(6, dtype=torch.int32).reshape(2, 3),
            "mask": torch.tensor([True, False]),
            "half": torch.ones(2, dtype=torch.bfloat16),
            "none": torch.empty(0, 4),
        }
        return Entry(tensors, {"name": "caf\u00e9", "size": 3})


def same(first, second):
    return first.facts == second.facts and all(
        torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors
    )


def test_a_hit_equals_what_was_made(cache):
    make = Maker()
    made, found = cache.get("x", {"k": 1}, make), cache.get("x", {"k": 1}, make)
    assert make.calls == 1
    assert same(made, found)
    assert {t.dtype for t in found.tensors.values()} == {t.dtype for t in made.tensors.values()}


def test_each_key_and_name_is_an_entry_of_its_own(cache):
    make = Maker()
    for name, key in (("x", {"k": 1}), ("x", {"k": 2}), ("y", {"k": 1})):
        cache.get(name, key, make)
    assert make.calls == 3


def test_an_entry_without_tensors(cache):
    for _ in range(2):
        assert cache.get("x", {}, lambda: Entry({}, {"texts": ["a"]})).facts == {"texts": ["a"]}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "garbage"])
def test_a_damaged_entry_is_made_anew(cache, damage):
    make = Maker()
    made = cache.get("x", {}, make)
    (path,) = cache.folder.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1  # in the middle of a tensor: the file is as valid as before
    path.write_bytes(
        {"flip": bytes(content), "cut": bytes(content[:-1]), "empty": b"", "garbage": b"x" * 99}[
            damage
        ]
    )
    assert same(cache.get("x", {}, make), made)
    assert make.calls == 2
    cache.get("x", {}, make)
    assert make.calls == 2


def test_writers_of_one_process_do_not_disturb_each_other(cache):
    made = [Maker() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda make: cache.get("x", {}, make), made * 5))
    assert all(same(entry, found[0]) for entry in found)


def test_a_writer_that_fails_leaves_nothing_behind(cache, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        cache.get("x", {}, Maker())
    assert list(cache.folder.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cache folder .*file/cache.*cache_dir"):
        Cache(tmp_path / "file" / "cache").get("x", {}, Maker())


def test_the_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache().folder == tmp_path / "lightning_evolve"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache().folder == tmp_path / ".cache" / "lightning_evolve"
