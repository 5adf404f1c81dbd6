r"""Drift of embeddings, by one of two tests.

``ks``: a two-sample Kolmogorov-Smirnov test of every dimension j, with Holm's correction, whose
smallest p-value is Bonferroni's:

    D_j = max over x of |F_j(x) - G_j(x)|,   p = d * min over j of Q(D_j sqrt(n m / (n + m)))

with F and G the empirical distributions, d the dimensions and Q Kolmogorov's distribution. It sees
a change of some dimensions, of any kind.

``mmd``: the maximum mean discrepancy under the RBF kernel k(x, y) = exp(-|x - y|^2 / h), h the
median squared distance:

    MMD^2 = mean of k within the one + mean of k within the other - 2 mean of k between them.

It sees a small change of many dimensions, at five times the cost. Its distribution comes from
``PERMUTATIONS`` random exchanges of rows. Their share above the observed value cannot be below 1 in
501, which is above the level of all but the first windows; so Pearson's type III distribution with
their mean, variance and skewness takes their place.

Sources: Smirnov 1939; Holm, Scandinavian Journal of Statistics 1979; Gretton et al., A Kernel
Two-Sample Test, JMLR 2012; Josse, Pages and Husson, Testing the Significance of the RV Coefficient,
Computational Statistics and Data Analysis 2008 (type III).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special, stats
from scipy.spatial.distance import cdist

from lightning_evolve.evolution.detectors.windows import Compare, Shift, most

PERMUTATIONS = 500


def ks_statistics(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Largest difference of the two empirical distributions, by dimension.

    Args:
        x: ``[n, d]``.
        y: ``[m, d]``.

    Returns:
        ``[d]``, from 0 to 1.

    Example:
        >>> ks_statistics(np.array([[1.0], [2.0]]), np.array([[2.0], [3.0]])).tolist()
        [0.5]
    """
    pooled = np.concatenate([x, y])
    order = np.argsort(pooled, axis=0)
    values = np.take_along_axis(pooled, order, axis=0)
    gap = np.cumsum(np.where(order < len(x), 1 / len(x), -1 / len(y)), axis=0)
    gap[:-1][values[1:] == values[:-1]] = 0  # among equal values only the last one counts
    return np.asarray(np.abs(gap).max(axis=0))


def ks(x: np.ndarray, y: np.ndarray) -> float:
    """Probability of a dimension that differs this much, over all dimensions."""
    root = np.sqrt(len(x) * len(y) / (len(x) + len(y)))
    p = special.kolmogorov(ks_statistics(x, y).max() * root)
    return float(min(1.0, x.shape[1] * p))


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Probability of a discrepancy this large under random exchanges of rows."""
    pooled = np.concatenate([x, y])
    distances = cdist(pooled, pooled, "sqeuclidean")
    width = np.median(distances)
    if not width:
        return 1.0
    kernel = np.exp(-distances / width)
    weights = np.repeat([1 / len(x), -1 / len(y)], [len(x), len(y)])
    rng = np.random.default_rng(0)
    exchanged = rng.permuted(np.tile(weights, (PERMUTATIONS, 1)), axis=1)
    null = ((exchanged @ kernel) * exchanged).sum(axis=1)
    law = stats.pearson3(stats.skew(null), null.mean(), null.std(ddof=1))
    return float(law.sf(weights @ kernel @ weights))


def _comparing(test: str) -> Compare:
    def compare(reference: Sequence[Sequence[float]], window: Sequence[Sequence[float]]) -> Shift:
        x, y = np.asarray(reference, dtype=float), np.asarray(window, dtype=float)
        dimensions = most([str(j) for j in range(x.shape[1])], ks_statistics(x, y))
        first = int(dimensions[0]) if dimensions else 0
        before, after = float(x[:, first].mean()), float(y[:, first].mean())
        p = TESTS[test](x, y)
        return Shift(
            p,
            before,
            after,
            tuple(f"dimension {j}" for j in dimensions),
            f"embeddings moved ({test.upper()}, p {p:.1g}), most in dimension {first}: mean from "
            f"{before:.2f} to {after:.2f}, deviation from {x[:, first].std():.2f} to "
            f"{y[:, first].std():.2f}",
        )

    return compare


TESTS = {"ks": ks, "mmd": mmd}
COMPARE = {name: _comparing(name) for name in TESTS}
"""By the name of the test, from the features of two windows to how they differ."""
