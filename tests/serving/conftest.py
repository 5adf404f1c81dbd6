"""One run and one server for all tests that do not need another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.runs import make_run
from tests.serving.servers import Server, serving


@pytest.fixture(scope="package")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("serving") / "run")


@pytest.fixture(scope="package")
def server(run) -> Iterator[Server]:
    with serving(run) as started:
        yield started
