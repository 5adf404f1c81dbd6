"""Imports run down the layers of CONTRIBUTING.md, and never up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_evolve"


def layers():
    """The height of each module and package at the top, read from the table."""
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    named = [re.findall(r"`([\w.]+)/?`", row) for row in rows]
    return {name.removesuffix(".py"): -n for n, names in enumerate(named) for name in names}


HEIGHT = layers()
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))


def imported(tree):
    """The first names below the package that run-time code imports, wherever in the file."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module.split(".")
            names = [alias.name for alias in node.names] if whole == [PACKAGE] else whole[1:2]
            yield from (name for name in names if whole[0] == PACKAGE)
        yield from imported(node)


def top(file):
    return file.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def test_the_table_names_all_that_is_there():
    assert {top(f) for f in FILES} - {"__init__", "__main__"} <= set(HEIGHT)


@pytest.mark.parametrize("layer", sorted({top(f) for f in FILES} & set(HEIGHT)))
def test_imports_run_down(layer):
    up = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in FILES
        if top(file) == layer
        for name in imported(ast.parse(file.read_text(encoding="utf-8")))
        if HEIGHT.get(name, min(HEIGHT.values())) > HEIGHT[layer]
    ]
    assert not up
