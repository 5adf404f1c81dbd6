"""The corpus that is on every machine: paragraphs of the standard library's docstrings.

The class of a paragraph is the module that it documents. The sources are parsed and never
imported, for some modules do things when they are imported (``antigravity`` opens a browser).
What is found depends on the version of Python: some 60 modules and 5,000 paragraphs.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from lightning_evolve.data.cache import Cache, Entry, code_digest
from lightning_evolve.data.cleaning import clean, normalise
from lightning_evolve.data.rows import Rows
from lightning_evolve.errors import UsageError

MASK = "[MASK]"
"""Stands where the name of the module stood, so that the class is not read off."""

SHORTEST, LONGEST = 30, 600  # characters of a paragraph: less says nothing, more is a table
FEWEST, MOST = 40, 120  # paragraphs of a module: enough for 20 shots and 20 queries, and balanced

# Tests, programs and generated tables: their docstrings are not documentation of a module.
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}


def docstrings(cache: Cache) -> Rows:
    """Paragraphs of the standard library's docstrings, labelled with their module.

    Args:
        cache: where the paragraphs are kept once they have been found.

    Returns:
        Rows in the order of the modules' names and of their sources, the name masked; between
        ``FEWEST`` and ``MOST`` paragraphs of each module, no paragraph twice.

    Raises:
        UsageError: this Python comes without the sources of its standard library.
    """
    library = Path(sysconfig.get_path("stdlib"))
    sources = sorted(_sources(library), key=lambda item: (item[0], item[1].as_posix()))
    if not sources:
        raise UsageError(
            f"source 'docstrings' needs the sources of the standard library, and {str(library)!r} "
            "has none: name a file, a folder or a Hugging Face dataset"
        )
    # Sizes and not times: the same Python gives the same key wherever it is installed.
    sizes = [[path.relative_to(library).as_posix(), path.stat().st_size] for _, path in sources]
    key = {"code": code_digest(__file__), "python": sys.version, "sources": sizes}

    def make() -> Entry:
        rows = _collect(sources)
        return Entry({}, {"labels": rows.labels, "texts": rows.texts})

    facts = cache.get("docstrings", key, make).facts
    return Rows(facts["labels"], texts=facts["texts"])


def _sources(library: Path) -> Iterator[tuple[str, Path]]:
    for place in library.iterdir():
        # `_pydecimal` documents `decimal`; other private modules document no public one.
        module = place.stem.removeprefix("_py")
        if module in sys.stdlib_module_names and not module.startswith("_"):
            for path in place.rglob("*.py") if place.is_dir() else [place]:
                if path.suffix == ".py" and not _LEFT_OUT.intersection(
                    path.relative_to(library).parts
                ):
                    yield module, path


def _collect(sources: list[tuple[str, Path]]) -> Rows:
    found = [(module, text) for module, path in sources for text in _paragraphs(path)]
    rows, _ = clean(Rows([module for module, _ in found], texts=[text for _, text in found]))
    by_module: dict[str, list[str]] = defaultdict(list)
    for module, text in zip(rows.labels, rows.texts or [], strict=True):
        masked = mask(text, module)
        if masked not in by_module[module]:
            by_module[module].append(masked)
    labels, texts = [], []
    for module, paragraphs in by_module.items():
        count = min(len(paragraphs), MOST)
        if count >= FEWEST:
            # Evenly spaced, so that all of a large package is in it.
            texts += [paragraphs[i * len(paragraphs) // count] for i in range(count)]
            labels += [module] * count
    return Rows(labels, texts=texts)


def _paragraphs(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's string literals
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return  # a distribution's patch for another version of Python
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for block in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                text = normalise(block)
                if SHORTEST <= len(text) <= LONGEST and _is_prose(text):
                    yield text


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return ">>>" not in text and len(text.split()) >= 5 and letters >= 0.75 * len(text)


def mask(text: str, module: str) -> str:
    """Masks a module's name in a text: as a word, and at the start of a name in camel case.

    Args:
        text: a paragraph.
        module: the name.

    >>> mask("A TarFile is opened by tarfile.open; see TarFileError and tar files.", "tarfile")
    'A [MASK] is opened by [MASK].open; see [MASK]Error and tar files.'
    """
    return re.sub(rf"(?<![A-Za-z])(?i:{module})s?(?![a-z])", MASK, text)
