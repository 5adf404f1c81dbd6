"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, on every machine."""

from __future__ import annotations

import numpy as np

from lightning_evolve.data.rows import Rows


def digits() -> Rows:
    """The images in 0..1 of shape ``[1797, 8, 8]``, labelled ``"0"`` to ``"9"``."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Rows(
        [str(digit) for digit in bunch.target], images=(bunch.images / 16).astype(np.float32)
    )
