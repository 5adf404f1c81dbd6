"""A parser's message of many lines, in one: which key, what is wrong with it, what to do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module

_KEY = re.compile(r'Parser key "([^"]+)":')
_CLASS = re.compile(r"(?:given class_path |class_path=)'([^']+)'")
_UNKNOWN = re.compile(r"Option '([^']+)' is not accepted")
_UNKNOWN_TOP = re.compile(r"does not accept option '([^']+)'|unrecognized arguments: (.+)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NOT_IMPORTED = re.compile(r"(No module named .+|module .+ has no attribute .+)")
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_WRONG_TYPE = re.compile(r"Expected an? (.+?)\. Got value: (.+?)(?:\. Got value: .*)?$", re.M)
_WRONG_TYPES = re.compile(r"- Expected an? (<class .+?>)$", re.M)
_GIVEN = re.compile(r"Given value: (.+)")
_NOISE = ("Does not validate", "Subtypes:", "Errors:", "Given value", "- Expected a <class 'None")


def condense(
    message: str, options: Iterable[str] = (), classes: Callable[[], Iterable[str]] = tuple
) -> str:
    """Returns the useful part of jsonargparse's message as one line with a remedy.

    Args:
        message: as jsonargparse words it; where the wording is not known, its most specific line.
        options: the keys that there are, for suggestions.
        classes: gives the short names of classes that there are, for suggestions.

    Example:
        >>> condense("Subcommand 'fit' does not accept option 'trainre'", ["trainer"])
        "unknown key 'trainre'; did you mean 'trainer'?"
    """
    text = message.strip()
    key = ".".join(_KEY.findall(text))
    at = f"{key}: " if key else ""
    owners = _CLASS.findall(text)
    owner = owners[-1] if owners else ""
    if match := _UNKNOWN_TOP.search(text):
        name = (match[1] or match[2]).strip()
        bare = name.split("=")[0].split()[0].lstrip("-")
        return f"unknown key {bare!r}; {_closest(bare, options)}"
    if match := _UNKNOWN.search(text):
        if owner in ("lightning.LightningModule", "lightning.LightningDataModule"):
            return f"{at}it has no class_path; name the class before its options"
        # Without an owner it is the parser of that class alone which complains.
        takes = _parameters(owner) if owner else list(options)
        listed = f"{owner.rpartition('.')[2] or 'it'} takes {', '.join(takes)}"
        return f"{at}unknown key {match[1]!r}; {_closest(match[1], takes, listed)}"
    if match := _NO_CLASS.search(text):
        name = match[1]
        return f"{at}there is no class {name!r}; {_closest(name, classes(), 'give a full path')}"
    if match := _NOT_IMPORTED.search(text):
        # A factory's class stands only in what was given; the class around it is no culprit.
        given = re.search(r"Given value: ([\w.]+)$", text, re.MULTILINE)
        return f"{at}class_path {(given[1] if given else owner)!r} does not import: {match[1]}"
    if match := _REQUIRED.search(text):
        names = [name.partition(".")[2] or name for name in match[1].split(", ")]
        if not key:
            return f"no {' and no '.join(sorted(names, reverse=True))}; give --config FILE"
        return f"{at}{owner.rpartition('.')[2]} needs {', '.join(names)}"
    if match := _WRONG_TYPE.search(text):
        return f"{at}expected {_kind(match[1])}, got {match[2]}"
    kinds = [kind for k in _WRONG_TYPES.findall(text) if (kind := _kind(k)) != "NoneType"]
    if kinds and (match := _GIVEN.search(text)):
        return f"{at}expected {' or '.join(kinds)}, got {match[1]}"
    return at + _KEY.sub("", text.splitlines()[_deepest(text)]).strip(" -")


def _kind(name: str) -> str:
    """Returns how a person says a type: ``<class 'int'>`` as int, a literal as its choices."""
    choices = re.fullmatch(r"typing\.Literal\[(.+)\]", name)
    return (
        f"one of {choices[1].removesuffix(', False')}"
        if choices
        else re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", name)
    )


def _deepest(text: str) -> int:
    """Returns the number of the line that is indented most and says something."""
    lines = text.splitlines()
    said = [
        number
        for number, line in enumerate(lines)
        if line.strip() and not line.strip().startswith(_NOISE)
    ]
    return max(said, key=lambda number: (_indent(lines[number]), -number), default=0)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" -"))


def _closest(name: str, there_are: Iterable[str], otherwise: str = "") -> str:
    there_are = list(there_are)
    close = get_close_matches(name, there_are, n=1, cutoff=0.7)
    if close:
        return f"did you mean {close[0]!r}?"
    return otherwise or "see the command with --print_config for the keys there are"


def _parameters(class_path: str) -> list[str]:
    """Returns the names that a class takes, its bases' included where it passes them on."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    names: list[str] = []
    for kind in inspect.getmro(found) if inspect.isclass(found) else ():
        if "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
        names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    # The first parameter of a factory comes from the framework, not from YAML.
    return [n for n in dict.fromkeys(names) if n not in ("self", "spec", "params")]
