"""Random affine distortions of images, against learning the training images by heart."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

TURN, STRETCH, SHEAR, SHIFT = math.radians(11), 0.15, 0.2, 0.1


def distorted(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turn, stretch, shear and shift each image by itself, as Simard et al. (2003) do.

    At strength 1 the turn is up to 11 degrees, height and width are each read from 85 to 115% of
    theirs, the shear is up to 0.2 and the shift up to a tenth of half the size, all drawn evenly.
    What comes in from outside is 0.

    Args:
        images: float of shape ``[rows, channels, height, width]``.
        strength: what all of these ranges are multiplied by.
        generator: what is drawn from.

    Returns:
        Images of the same shape, interpolated bilinearly.

    >>> image = torch.eye(3).expand(1, 1, 3, 3)
    >>> bool(torch.allclose(distorted(image, 0.0, torch.Generator()), image))
    True
    """

    def drawn(most: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * most * strength

    turn, shear = drawn(TURN), drawn(SHEAR)
    wide, high = 1 + drawn(STRETCH), 1 + drawn(STRETCH)
    right, down = drawn(SHIFT), drawn(SHIFT)
    # Of an output pixel's coordinates, in -1..1, the coordinates that it is read at.
    affine = torch.stack(
        [
            torch.stack([turn.cos() * wide, shear - turn.sin() * high, right], dim=1),
            torch.stack([turn.sin() * wide, turn.cos() * high, down], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(affine.to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
