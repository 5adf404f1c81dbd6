"""LatentWords: each text as one vector, by latent semantic analysis of the training rows."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from lightning_evolve.data.cache import Entry
from lightning_evolve.data.checks import at_least
from lightning_evolve.data.encoders.base import Encoder
from lightning_evolve.data.rows import Rows
from lightning_evolve.errors import UsageError
from lightning_evolve.tasks import Tensors


class LatentWords(Encoder):
    r"""Coordinates of a text's TF-IDF vector along the main axes of the training rows.

    .. math:: X_{\mathrm{train}} \approx U \Sigma V^\top, \qquad
        z = \sqrt{d} \, \frac{x V}{\|x V\|}

    Latent semantic analysis (Deerwester et al. 1990): feature vectors of text for a `Head`, with
    nothing to download.

    Args:
        size: axes d.

    Raises:
        UsageError: fewer than one.
    """

    learns: ClassVar[bool] = True

    def __init__(self, size: int = 128) -> None:
        at_least(1, size=size)
        self.size = size

    def settings(self) -> dict[str, Any]:
        """The number of axes."""
        return {"size": self.size}

    def fit(self, rows: Rows) -> None:
        """Find the words of the training rows and their main axes.

        Args:
            rows: the training rows; of few, there are fewer axes.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.vectorizer = TfidfVectorizer(sublinear_tf=True)
        try:
            found = self.vectorizer.fit_transform(rows.texts)
        except ValueError as error:  # scikit-learn's for an empty vocabulary
            raise UsageError(
                "encoder LatentWords finds no word of two letters or more in the training texts; "
                "use NGrams"
            ) from error
        # No more axes than there can be.
        svd = TruncatedSVD(min(self.size, *found.shape), random_state=0).fit(found)
        self.axes = svd.components_

    def learned(self) -> Entry:
        """The words, the logarithms of how seldom they are, and the axes."""
        return Entry(
            {
                "idf": torch.from_numpy(self.vectorizer.idf_.copy()),
                "axes": torch.from_numpy(self.axes.copy()),
            },
            {"words": self.vectorizer.get_feature_names_out().tolist()},
        )

    def restore(self, learned: Entry) -> None:
        """Take words and axes over.

        Args:
            learned: what `learned` gave.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.vectorizer = TfidfVectorizer(sublinear_tf=True, vocabulary=learned.facts["words"])
        self.vectorizer.idf_ = learned.tensors["idf"].numpy()
        self.axes = learned.tensors["axes"].numpy()

    def encode(self, rows: Rows) -> Tensors:
        """Project texts.

        Args:
            rows: texts.

        Returns:
            ``features``, float32 of shape ``[rows, size]`` with a root mean square of 1 in each
            row; zeros for a text of unknown words.
        """
        along = torch.from_numpy(self.vectorizer.transform(rows.texts) @ self.axes.T)
        unit = torch.nn.functional.normalize(along, dim=1)
        return {"features": (unit * along.shape[1] ** 0.5).float()}
