"""Raw features for the no-learning floor, which every learner has to stand above."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from torch import Tensor

from lightning_evolve.data.rows import Rows

_WORDS = (r"(?u)\b\w\w+\b", r"(?u)\b\w+\b", r"\S+")  # scikit-learn's own pattern, and wider ones


class RawFeatures:
    """TF-IDF of texts, its words and weights taken from the training rows; pixels of images.

    Args:
        rows: all rows.
        training: numbers of the training rows.
    """

    def __init__(self, rows: Rows, training: Tensor) -> None:
        self.rows = rows
        self.matrix: Any
        if rows.texts is None:
            assert rows.images is not None
            self.matrix = rows.images.reshape(len(rows), -1).astype(np.float32)
        else:
            from sklearn.feature_extraction.text import TfidfVectorizer

            texts = [rows.texts[n] for n in training.tolist()]
            vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=_pattern(texts))
            vectorizer.fit(texts)
            self.matrix = vectorizer.transform(rows.texts)

    def __call__(self, rows: Tensor) -> Any:
        """The features of rows.

        Args:
            rows: row numbers, int64 of shape ``[rows]``.

        Returns:
            A matrix of ``[rows, features]``: sparse (scipy) for texts, dense (numpy) for images.
        """
        return self.matrix[rows.numpy()]


def _pattern(texts: list[str]) -> str:
    """What is a word: the narrowest pattern of which the texts have one."""
    found = (pattern for pattern in _WORDS if any(re.search(pattern, text) for text in texts))
    return next(found, _WORDS[-1])
