"""The convolutional classifier of the few-shot literature."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_evolve.errors import UsageError
from lightning_evolve.learners.base import Learner, zero
from lightning_evolve.learners.checks import check_kind, check_sizes
from lightning_evolve.learners.warm_start import begin_from
from lightning_evolve.tasks import DataSpec


class Conv4(Learner):
    """Four times 3x3 convolution of stride 2, norm and ReLU, and one linear layer ``head``.

    As of Vinyals et al. (2016), with strides in place of pooling as Finn et al. (2017) have them
    for Omniglot: a quarter of the multiplications. Two things differ, both for fast learning: the
    features of an image are normalised once more (no parameters) before the head, and the head
    begins at zero. So the order in which the classes of a task are numbered does not matter, and
    the first inner step makes the head a classifier by the mean features of each class.

    The norms keep no running statistics, so that there is no state beside the parameters.

    Args:
        spec: what the data looks like; ``shape`` is ``(channels, height, width)``.
        channels: output channels of each convolution.
        norm: ``"layer"`` normalises each image by itself. ``"batch"`` normalises over the batch at
            hand, as MAML and MAML++ do: in a query set the logits of an image then depend on the
            other images (transductive), so that figures with it compare with theirs alone.
            ``"none"``: no norm.
        checkpoint: a ``.ckpt`` file of a run with the same learner, whose parameters to begin
            with, all but the head's.

    Raises:
        UsageError: if the data is not images, or is too small for ``"batch"``; for a number below
            1, an unknown norm, or a checkpoint of another learner.
    """

    first_layer = "conv1"

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: int = 64,
        norm: Literal["layer", "batch", "none"] = "layer",
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(spec)
        check_kind("Conv4", "images", spec)
        check_sizes("Conv4", channels=channels)
        if norm not in ("layer", "batch", "none"):
            raise UsageError(f"norm of Conv4 is {norm!r}; give layer, batch or none")
        colours, *size = spec.shape
        if norm == "batch" and max(size) <= 16:
            raise UsageError(
                f"images of {size[0]}x{size[1]} pixels are too small for Conv4 with norm: batch, "
                "which halves them four times: give the stream the encoder Pixels(size=28)"
            )
        for layer in range(1, 5):
            inputs = colours if layer == 1 else channels
            # A norm has a shift of its own.
            self.add_module(
                f"conv{layer}",
                nn.Conv2d(inputs, channels, 3, stride=2, padding=1, bias=norm == "none"),
            )
            if norm == "layer":
                self.add_module(f"norm{layer}", nn.GroupNorm(1, channels))
            elif norm == "batch":
                self.add_module(f"norm{layer}", nn.BatchNorm2d(channels, track_running_stats=False))
        left = [-(-pixels // 16) for pixels in size]
        self.head = nn.Linear(channels * left[0] * left[1], spec.num_classes)
        zero(self.head)
        if checkpoint is not None:
            begin_from(self, checkpoint)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: float in 0..1 of shape ``[rows, channels, height, width]``.

        Returns:
            Logits of shape ``[rows, num_classes]``.
        """
        # Half as fast again on a CPU.
        hidden = images.contiguous(memory_format=torch.channels_last)
        for layer in range(1, 5):
            hidden = getattr(self, f"conv{layer}")(hidden)
            hidden = getattr(self, f"norm{layer}", nn.Identity())(hidden)
            hidden = functional.relu(hidden)
        hidden = hidden.flatten(1)
        logits: Tensor = self.head(functional.layer_norm(hidden, hidden.shape[1:]))
        return logits
