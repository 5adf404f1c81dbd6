"""A convolutional classifier of small images."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_evolve.errors import UsageError
from lightning_evolve.learners.base import Learner
from lightning_evolve.learners.checks import check_kind, check_sizes
from lightning_evolve.tasks import DataSpec


class CNN(Learner):
    """Two 3x3 convolutions, each with ReLU and 2x2 max pooling, and one linear layer ``head``.

    There is no batch normalisation: its running statistics would be state beside the parameters,
    and a row's logits would depend on the other rows of its batch.

    Args:
        spec: what the data looks like; ``shape`` is ``(channels, height, width)``.
        channels: output channels of the two convolutions.

    Raises:
        UsageError: if the data is not images of at least 4x4 pixels, or ``channels`` is not two
            positive numbers.
    """

    first_layer = "conv1"

    def __init__(self, spec: DataSpec, *, channels: tuple[int, int] = (32, 64)) -> None:
        super().__init__(spec)
        check_kind("CNN", "images", spec)
        if len(channels) != 2:
            raise UsageError(f"channels of CNN is {channels}: give two, one for each convolution")
        first, second = channels
        check_sizes("CNN", channels=min(channels))
        colours, height, width = spec.shape
        if min(height, width) < 4:
            raise UsageError(
                f"images of {height}x{width} pixels are too small for CNN, which halves them "
                "twice: give the stream the encoder Pixels(size=28)"
            )
        self.conv1 = nn.Conv2d(colours, first, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(first, second, kernel_size=3, padding=1)
        self.head = nn.Linear(second * (height // 4) * (width // 4), spec.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: float in 0..1 of shape ``[rows, channels, height, width]``.

        Returns:
            Logits of shape ``[rows, num_classes]``.
        """
        # ReLU after pooling is the same function and works on a quarter of the values.
        hidden = nn.functional.max_pool2d(self.conv1(images), 2).relu()
        hidden = nn.functional.max_pool2d(self.conv2(hidden), 2).relu()
        logits: Tensor = self.head(hidden.flatten(1))
        return logits
