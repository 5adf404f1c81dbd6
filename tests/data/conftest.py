from __future__ import annotations

from collections.abc import Callable

import pytest

from lightning_evolve.data.cache import Cache
from lightning_evolve.data.rows import Rows


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def make_rows() -> Callable[..., Rows]:
    """Rows of so many classes with so many distinct texts each."""

    def make(classes: int, each: int, first_class: int = 0) -> Rows:
        numbers = [(c, n) for c in range(first_class, first_class + classes) for n in range(each)]
        return Rows(
            [f"class{c:02}" for c, _ in numbers],
            texts=[f"topic{c} says word{n} and word{n % 3}" for c, n in numbers],
        )

    return make
