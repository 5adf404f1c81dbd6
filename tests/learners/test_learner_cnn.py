from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_evolve.errors import UsageError
from lightning_evolve.learners import CNN
from lightning_evolve.tasks import DataSpec


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 5, 7), (1, 8, 8), (3, 9, 12), (1, 28, 28)])
def test_is_convolution_relu_pooling_twice_and_a_linear_layer(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    learner = CNN(DataSpec(num_classes=5, shape=shape), channels=(3, 4))
    layers = nn.Sequential(
        *(learner.conv1, nn.ReLU(), nn.MaxPool2d(2)),
        *(learner.conv2, nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), learner.head),
    )
    images = torch.rand(6, *shape)
    assert learner(images).shape == (6, 5)
    torch.testing.assert_close(learner(images), layers(images))


def test_has_three_layers_and_no_other_state() -> None:
    learner = CNN(DataSpec(num_classes=2, shape=(1, 28, 28)))
    assert {n: tuple(v.shape) for n, v in learner.state_dict().items()} == {
        "conv1.weight": (32, 1, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        "head.weight": (2, 64 * 7 * 7),
        "head.bias": (2,),
    }


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((1, 3, 28), (2, 2), r"3x28 pixels are too small .*Pixels\(size=28\)"),
        ((1, 8, 8), (2, 0), "channels of CNN is 0"),
        ((1, 8, 8), (2, 2, 2), r"channels of CNN is \(2, 2, 2\)"),
    ],
)
def test_refusals(shape: tuple[int, ...], channels: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CNN(DataSpec(num_classes=2, shape=shape), channels=channels)
