"""Drift of the predicted classes: the chi-square test that two windows have the same shares.

    chi^2 = sum over windows w and classes c of (n_wc - e_wc)^2 / e_wc,   e_wc = n_w n_c / n

with C - 1 degrees of freedom. Classes of whom fewer than 5 are expected in a window are taken
together, for the approximation asks for that many; where it leaves one class there is no evidence.

Sources: Pearson, Philosophical Magazine 1900; Cochran, Some Methods for Strengthening the Common
chi^2 Tests, Biometrics 1954 (small counts).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from lightning_evolve.evolution.detectors.windows import Shift, most

EXPECTED = 5  # least expected count


def p_value(counts: np.ndarray) -> float:
    """Probability of shares that differ like these, or more, if both windows had the same.

    Args:
        counts: rows by window and class, ``[2, classes]``; classes may be new or gone.

    Returns:
        The p-value; 1 where there are too few rows to say.

    Example:
        >>> round(p_value(np.array([[50, 50, 1], [50, 50, 0]])), 2)
        0.94
        >>> p_value(np.array([[50, 50], [80, 20]])) < 1e-4
        True
    """
    counts = counts[:, np.argsort(counts.sum(axis=0))]
    expected = counts.sum(axis=0) * counts.sum(axis=1).min() / counts.sum()
    small = int((expected < EXPECTED).sum())
    if small:
        small += int(expected[:small].sum() < EXPECTED)  # the next class, which has enough
        counts = np.hstack([counts[:, :small].sum(axis=1, keepdims=True), counts[:, small:]])
    if counts.shape[1] < 2:
        return 1.0
    return float(stats.chi2_contingency(counts, correction=False).pvalue)


def compare(reference: Sequence[str], window: Sequence[str]) -> Shift:
    """How the shares of the predicted classes differ.

    Args:
        reference: names of the classes that were predicted.
        window: the same in use.

    Returns:
        The shift; what moved are the classes whose count is furthest from the expected, by its
        standard deviation.
    """
    names, codes = np.unique([*reference, *window], return_inverse=True)
    old, new = np.split(codes, [len(reference)])
    counts = np.stack([np.bincount(rows, minlength=len(names)) for rows in (old, new)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    residuals = np.abs(shares[1] - shares[0]) / np.sqrt(counts.sum(axis=0))
    moved = most([str(name) for name in names], residuals)
    before, after = (dict(zip(names.tolist(), row.tolist(), strict=True)) for row in shares)
    said = ", ".join(f"{name!r} from {before[name]:.2f} to {after[name]:.2f}" for name in moved)
    first = moved[0] if moved else str(names[0])
    return Shift(
        p_value(counts),
        before[first],
        after[first],
        moved,
        f"shares of the predicted classes moved (chi-square): {said or 'none'}",
    )
