from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict

import pytest

from lightning_evolve.data.cache import Cache
from lightning_evolve.data.docstrings import FEWEST, MASK, MOST, docstrings, mask
from lightning_evolve.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("docstrings")


@pytest.fixture(scope="module")
def rows(folder):
    return docstrings(Cache(folder))


def test_enough_modules_with_enough_paragraphs(rows):
    counts = Counter(rows.labels)
    assert len(counts) >= 40  # 62 of Python 3.11; versions differ
    assert min(counts.values()) >= FEWEST
    assert max(counts.values()) <= MOST
    assert list(counts) == sorted(counts)


def test_no_paragraph_is_in_two_modules_or_twice_in_one(rows):
    owners = defaultdict(list)
    for text, label in zip(rows.texts, rows.labels, strict=True):
        owners[text].append(label)
    # Masking may make paragraphs of two modules equal; cleaning drops those that it does.
    assert sum(len(labels) > 1 for labels in owners.values()) < 10
    assert all(len(labels) == len(set(labels)) for labels in owners.values())


def test_the_label_cannot_be_read_off(rows):
    for text, label in zip(rows.texts, rows.labels, strict=True):
        assert not re.search(rf"\b{label}\b", text, re.IGNORECASE), (label, text)
    assert sum(MASK in text for text in rows.texts) > 300


def test_the_second_call_finds_the_same_on_the_disk(folder, rows, monkeypatch):
    monkeypatch.setattr("ast.parse", None)  # whoever parses again fails
    found = docstrings(Cache(folder))
    assert found == rows


def test_nothing_is_imported(rows):
    assert not {"antigravity", "this", "turtle", "tkinter"} & set(sys.modules)


def test_what_a_paragraph_is(tmp_path, monkeypatch, cache):
    prose = [f"Paragraph {n} of the documentation, which is long enough." for n in range(FEWEST)]
    lines = "\n\n    ".join(prose)
    encoder = f'''
class A:
    """{lines}

    Too short.

    {"much too long " * 50}

    >>> json.dumps("and this is an example and no prose")

    [] () {{}} == 1 2 3 4 5 6 7 8 9 10 11 12 13 14
    """
    async def f():
        r"""\\d The JSON   encoder
        of this file here."""
'''
    files = {
        "json/encoder.py": encoder,
        "json/__init__.py": f'"""{prose[0]}"""\n',
        "json/tests/test_it.py": '"""A paragraph of a test, which nobody should read."""',
        "_pydecimal.py": f'"""{lines.replace("Paragraph", "Decimal")}"""',
        "_private.py": f'"""{lines.replace("Paragraph", "Private")}"""',
        "notes.py": f'"""{lines.replace("Paragraph", "Foreign")}"""',
        "queue.py": f'"""{lines.replace("Paragraph", "Queue", 1)}"""',  # all but one are json's
        "broken.py": "def f(:",
        "string.py": "def f(:",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setattr("lightning_evolve.data.docstrings.FEWEST", 2)
    rows = docstrings(cache)
    by_module = {label: [] for label in dict.fromkeys(rows.labels)}
    for label, text in zip(rows.labels, rows.texts, strict=True):
        by_module[label].append(text)
    assert list(by_module) == ["decimal", "json"]
    assert by_module["decimal"] == [text.replace("Paragraph", MASK) for text in prose]
    # Those that `queue` has too are gone.
    assert by_module["json"] == [prose[0], f"\\d The {MASK} encoder of this file here."]


def test_a_python_without_its_sources(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(UsageError, match=r"'docstrings' needs the sources .*name a file"):
        docstrings(cache)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("decimals of Decimal and DECIMAL", f"{MASK} of {MASK} and {MASK}"),
        ("DecimalTuple, decimal.Context, _decimal", f"{MASK}Tuple, {MASK}.Context, _{MASK}"),
        ("hexadecimal and decimally stay", "hexadecimal and decimally stay"),
    ],
)
def test_mask(text, masked):
    assert mask(text, "decimal") == masked
