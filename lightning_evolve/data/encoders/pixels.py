"""Pixels: images of one size with their channels first."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.nn.functional import interpolate

from lightning_evolve.data.checks import at_least
from lightning_evolve.data.encoders.base import Encoder
from lightning_evolve.data.rows import Rows
from lightning_evolve.errors import UsageError
from lightning_evolve.tasks import Tensors


class Pixels(Encoder):
    """Images as float tensors in 0..1, made square by bilinear interpolation.

    Args:
        size: height and width in pixels.

    Raises:
        UsageError: the size is less than one.
    """

    kind: ClassVar[str] = "images"
    cached: ClassVar[bool] = False

    def __init__(self, size: int = 28) -> None:
        at_least(1, size=size)
        self.size = size

    def settings(self) -> dict[str, Any]:
        """The size."""
        return {"size": self.size}

    def fit(self, rows: Rows) -> None:
        """Nothing is learned.

        Args:
            rows: not looked at.
        """

    def encode(self, rows: Rows) -> Tensors:
        """Scale images.

        Args:
            rows: images.

        Returns:
            ``images`` float32 of shape ``[rows, channels, size, size]``.

        Raises:
            UsageError: images of floats that are not in 0..1.
        """
        assert rows.images is not None
        images = torch.from_numpy(rows.images)
        images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if len(images) and not (images.min() >= 0 and images.max() <= 1):
            raise UsageError(
                f"images of floats are in {images.min():g}..{images.max():g} and must be in 0..1: "
                "scale them, or store them as uint8 in 0..255"
            )
        if images.shape[-2:] != (self.size, self.size):
            shape = (self.size, self.size)
            images = interpolate(images, shape, mode="bilinear", antialias=True).clamp(0, 1)
        return {"images": images.contiguous()}
