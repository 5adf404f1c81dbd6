"""NGrams: a text as its character n-grams, weighted by TF-IDF."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from lightning_evolve.data.cache import Entry
from lightning_evolve.data.checks import at_least
from lightning_evolve.data.encoders.base import Encoder
from lightning_evolve.data.rows import Rows
from lightning_evolve.errors import UsageError
from lightning_evolve.tasks import Tensors


class NGrams(Encoder):
    """The character n-grams of a text's words, those that weigh most first.

    The weights are TF-IDF (Spaerck Jones 1972) as scikit-learn has it: 1 + log of the count, times
    the smoothed log inverse of the share of the training rows that have the n-gram; a row's squares
    add up to 1. N-grams that the training rows do not have are left out.

    Args:
        shortest: characters of the shortest n-grams.
        longest: characters of the longest n-grams.
        max_length: most n-grams of a text; those that weigh least are cut off.
        min_frequency: training rows that an n-gram must occur in.

    Raises:
        UsageError: one of them is less than one, or ``shortest`` is above ``longest``.
    """

    learns: ClassVar[bool] = True

    def __init__(
        self, shortest: int = 3, longest: int = 5, max_length: int = 256, min_frequency: int = 1
    ) -> None:
        at_least(
            1,
            shortest=shortest,
            longest=longest,
            max_length=max_length,
            min_frequency=min_frequency,
        )
        if shortest > longest:
            raise UsageError(
                f"shortest is {shortest} and longest is {longest}: give n-grams a shortest of at "
                "most the longest"
            )
        self.shortest = shortest
        self.longest = longest
        self.max_length = max_length
        self.min_frequency = min_frequency

    def settings(self) -> dict[str, Any]:
        """All four arguments."""
        return {
            "shortest": self.shortest,
            "longest": self.longest,
            "max_length": self.max_length,
            "min_frequency": self.min_frequency,
        }

    def fit(self, rows: Rows) -> None:
        """Find the n-grams of the training rows and how many rows have each.

        Args:
            rows: the training rows.

        Raises:
            UsageError: no n-gram is in as many rows as it must be.
        """
        self.vectorizer = self._vectorizer(min_df=self.min_frequency)
        try:
            self.vectorizer.fit(rows.texts)
        except ValueError as error:
            raise UsageError(
                f"no n-gram of {self.shortest} to {self.longest} characters is in "
                f"{self.min_frequency} of {len(rows)} training rows: lower min_frequency or "
                "shortest"
            ) from error
        self.vocab_size = len(self.vectorizer.vocabulary_)

    def _vectorizer(self, **options: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(
            analyzer="char_wb",
            ngram_range=(self.shortest, self.longest),
            sublinear_tf=True,
            dtype=np.float32,
            **options,
        )

    def learned(self) -> Entry:
        """The n-grams and the logarithms of how seldom they are."""
        return Entry(
            {"idf": torch.from_numpy(self.vectorizer.idf_.copy())},
            {"ngrams": self.vectorizer.get_feature_names_out().tolist()},
        )

    def restore(self, learned: Entry) -> None:
        """Take n-grams over.

        Args:
            learned: what `learned` gave.
        """
        self.vectorizer = self._vectorizer(vocabulary=learned.facts["ngrams"])
        self.vectorizer.idf_ = learned.tensors["idf"].numpy()
        self.vocab_size = len(learned.facts["ngrams"])

    def encode(self, rows: Rows) -> Tensors:
        """Number and weigh the n-grams of texts.

        Args:
            rows: texts.

        Returns:
            ``input_ids`` int32 and ``weights`` float32, both ``[rows, max_length]`` and 0 where a
            text has no more n-grams.
        """
        found = self.vectorizer.transform(rows.texts)
        row = np.repeat(np.arange(len(rows)), np.diff(found.indptr))
        order = np.lexsort((found.indices, -found.data, row))
        column = np.arange(len(row)) - found.indptr[row]
        kept = column < self.max_length
        ids = np.zeros((len(rows), self.max_length), dtype=np.int32)
        weights = np.zeros((len(rows), self.max_length), dtype=np.float32)
        ids[row[kept], column[kept]] = found.indices[order][kept]
        weights[row[kept], column[kept]] = found.data[order][kept]
        return {"input_ids": torch.from_numpy(ids), "weights": torch.from_numpy(weights)}
