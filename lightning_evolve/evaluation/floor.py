"""The no-learning floor: the nearest centroid of raw features."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.preprocessing import normalize


def nearest_centroid(support: Any, labels: np.ndarray, query: Any) -> np.ndarray:
    """Predicts each query row as the class whose mean support row is nearest by cosine.

    Args:
        support: features ``[rows, F]``, dense or sparse.
        labels: classes of the support rows, 0 to the number of classes - 1.
        query: features ``[rows, F]``.

    Returns:
        The predicted class of each query row.

    Example:
        >>> support = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> nearest_centroid(support, np.array([0, 1]), np.array([[0.2, 0.9]]))
        array([1])
    """
    members = np.eye(int(labels.max()) + 1)[labels]
    centroids = normalize(np.asarray((normalize(support).T @ members).T))
    nearest: np.ndarray = np.asarray(normalize(query) @ centroids.T).argmax(axis=1)
    return nearest
