from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_evolve.errors import UsageError
from lightning_evolve.learners import Conv4
from lightning_evolve.tasks import DataSpec

SPEC = DataSpec(num_classes=3, shape=(1, 28, 28))
NORMS = {
    "layer": lambda: nn.GroupNorm(1, 4),
    "batch": lambda: nn.BatchNorm2d(4),
    "none": nn.Identity,
}


def small(spec: DataSpec = SPEC, **options) -> Conv4:
    torch.manual_seed(0)
    learner = Conv4(spec, channels=4, **options)
    nn.init.normal_(learner.head.weight)
    return learner


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 20)])
def test_is_convolution_norm_relu_four_times_and_a_linear_layer(norm: str, shape: tuple) -> None:
    learner = small(DataSpec(num_classes=3, shape=shape), norm=norm)
    layers = []
    for n in range(1, 5):
        layers += [getattr(learner, f"conv{n}"), NORMS[norm](), nn.ReLU()]
    width = learner.head.in_features
    layers += [nn.Flatten(), nn.LayerNorm(width), learner.head]
    images = torch.rand(6, *shape)
    torch.testing.assert_close(learner(images), nn.Sequential(*layers)(images))


def test_is_the_size_of_the_literature_and_has_no_other_state() -> None:
    learner = Conv4(DataSpec(num_classes=5, shape=(1, 28, 28)), norm="batch")
    assert {n: tuple(v.shape) for n, v in learner.state_dict().items()} == {
        "conv1.weight": (64, 1, 3, 3),
        **{f"conv{n}.weight": (64, 64, 3, 3) for n in (2, 3, 4)},
        **{f"norm{n}.{kind}": (64,) for n in range(1, 5) for kind in ("weight", "bias")},
        "head.weight": (5, 64 * 2 * 2),
        "head.bias": (5,),
    }
    assert not learner(torch.rand(2, 1, 28, 28)).any(), "the head begins at zero"


@pytest.mark.parametrize(("norm", "transductive"), [("layer", 0), ("batch", 1), ("none", 0)])
@pytest.mark.parametrize("training", [False, True])
def test_only_batch_norm_looks_at_the_other_images(
    norm: str, transductive: int, training: bool
) -> None:
    learner = small(norm=norm).train(training)
    images = torch.rand(6, 1, 28, 28)
    alone = torch.allclose(learner(images)[:2], learner(images[:2]), atol=1e-5)
    assert alone is not bool(transductive)


def test_begins_where_another_run_has_ended_but_for_the_head(tmp_path: Path) -> None:
    before = small(DataSpec(num_classes=7, shape=(1, 28, 28)))
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {f"learner.{n}": t for n, t in before.state_dict().items()}}, path)
    torch.manual_seed(1)
    after = Conv4(SPEC, channels=4, checkpoint=str(path))
    for name, p in after.named_parameters():
        if name.startswith("head."):
            assert not p.any()
        else:
            assert torch.equal(p, before.get_parameter(name))
    with pytest.raises(UsageError, match=r"another learner: conv1.weight is \(4, 1, 3, 3\) there"):
        Conv4(SPEC, channels=5, checkpoint=str(path))
    with pytest.raises(UsageError, match=r"another learner: norm1.weight is \(4,\) there|absent"):
        Conv4(SPEC, channels=4, norm="none", checkpoint=str(path))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 damaged", b"text"])
def test_a_checkpoint_that_cannot_be_loaded(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "best.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"best.ckpt' cannot be loaded: name a .ckpt file"):
        Conv4(SPEC, checkpoint=str(path))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 16, 16), {"norm": "batch"}, r"16x16 pixels are too small .*Pixels\(size=28\)"),
        ((1, 28, 28), {"norm": "instance"}, "norm of Conv4 is 'instance'"),
        ((1, 28, 28), {"channels": 0}, "channels of Conv4 is 0"),
    ],
)
def test_refusals(shape: tuple[int, ...], options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Conv4(DataSpec(num_classes=2, shape=shape), **options)
