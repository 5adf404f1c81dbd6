"""Names of classes as texts: an example of each class that nobody has to collect."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from lightning_evolve.data.arranged import Arranged
from lightning_evolve.data.rows import Rows, concatenate
from lightning_evolve.errors import UsageError

_NUMBERED = re.compile(r"^\d+[\W_]+(?=.*[^\W\d_])")  # "07:SPORTS", "3. sports"
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # "PlayMusic"
_BETWEEN = re.compile(r"[\W_]+")
_LETTER = re.compile(r"[^\W\d_]")


def in_words(name: str) -> str:
    """Returns the name of a class as a person would write it, without its number.

    Args:
        name: as the source has it.

    Example:
        >>> in_words("card_payment_fee"), in_words("07:STYLE & BEAUTY"), in_words("PlayMusic")
        ('card payment fee', 'STYLE BEAUTY', 'Play Music')
    """
    return _BETWEEN.sub(" ", _CAMEL.sub(" ", _NUMBERED.sub("", name))).strip()


def with_class_names(arranged: Arranged) -> Arranged:
    """Adds the name of each class as a row of it, in no split (Luo et al. 2021).

    Args:
        arranged: a source of texts, cleaned and split.

    Returns:
        The same with as many rows more as there are classes, the last ones, in their order.

    Raises:
        UsageError: if the source has images, or a class whose name has no letter.
    """
    if arranged.rows.texts is None:
        raise UsageError("class_names: true is for texts, and the source has images; leave it out")
    for name in arranged.class_names:
        if not _LETTER.search(name):
            raise UsageError(
                f"class_names: true, and the name of the class {name!r} says nothing; leave it "
                "out, or name the classes in words in the label column"
            )
    names = Rows(list(arranged.class_names), texts=[in_words(n) for n in arranged.class_names])
    return arranged._replace(rows=concatenate([arranged.rows, names]))


def rows_of_class_names(labels: Tensor, classes: int) -> Tensor:
    """Returns the number of each class's row that :func:`with_class_names` has added.

    Args:
        labels: class of each row, ``[rows]``.
        classes: how many there are.
    """
    return torch.arange(len(labels) - classes, len(labels))
