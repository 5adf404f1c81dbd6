from __future__ import annotations

import math

import pytest
import torch

from lightning_evolve.data import distortions
from lightning_evolve.data.distortions import distorted
from lightning_evolve.data.episodes import Episodes
from lightning_evolve.data.table import Table
from lightning_evolve.errors import UsageError
from lightning_evolve.streams import EpisodeStream

SIZE = 41


def bars(count):
    """An upright soft bar in the middle of each image."""
    down, right = torch.meshgrid(*2 * [torch.arange(SIZE) - SIZE // 2.0], indexing="ij")
    return torch.exp(-(down**2) / 50 - right**2 / 8).expand(count, 1, SIZE, SIZE)


def moments(images):
    """Centre in pixels, and covariance [down, right], of the ink of each image."""
    places = torch.stack(torch.meshgrid(*2 * [torch.arange(SIZE) - SIZE // 2.0], indexing="ij"))
    weights = images[:, 0] / images.sum((1, 2, 3))[:, None, None]
    centre = torch.einsum("nij,cij->nc", weights, places)
    away = places - centre[:, :, None, None]
    return centre, torch.einsum("nij,ncij,ndij->ncd", weights, away, away)


def only(monkeypatch, kept):
    for name in {"TURN", "STRETCH", "SHEAR", "SHIFT"} - {kept}:
        monkeypatch.setattr(distortions, name, 0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_turn_is_up_to_eleven_degrees_and_keeps_the_shape(monkeypatch):
    only(monkeypatch, "TURN")
    centre, spread = moments(distorted(bars(200), 1.0, generator()))
    assert centre.abs().max() < 0.05
    angles = torch.rad2deg(torch.atan2(2 * spread[:, 0, 1], spread[:, 0, 0] - spread[:, 1, 1]) / 2)
    assert 10 < angles.max() < 11.2
    assert -11.2 < angles.min() < -10
    # Bilinear interpolation softens the bar a little.
    torch.testing.assert_close(
        torch.linalg.eigvalsh(spread), torch.tensor([4.0, 25.0]).expand(200, 2), atol=0.4, rtol=0
    )


def test_a_stretch_changes_height_and_width_apart(monkeypatch):
    only(monkeypatch, "STRETCH")
    _, spread = moments(distorted(bars(200), 1.0, generator()))
    high, wide = (spread[:, 0, 0] / 25).sqrt(), (spread[:, 1, 1] / 4).sqrt()
    for factors in (high, wide):
        assert 1 / 1.16 < factors.min() < 0.9
        assert 1.12 < factors.max() < 1 / 0.83
    assert abs(torch.corrcoef(torch.stack([high, wide]))[0, 1]) < 0.25


def test_a_shear_leans_the_bar_and_a_shift_moves_it(monkeypatch):
    with monkeypatch.context() as patch:
        only(patch, "SHEAR")
        _, spread = moments(distorted(bars(200), 1.0, generator()))
        slopes = spread[:, 0, 1] / spread[:, 0, 0]
        assert 0.18 < slopes.abs().max() < 0.21
    only(monkeypatch, "SHIFT")
    centre, _ = moments(distorted(bars(200), 1.0, generator()))
    most = 0.1 * SIZE / 2
    assert 0.9 * most < centre.abs().max() < most + 0.05


def test_twice_the_strength_is_twice_as_far(monkeypatch):
    only(monkeypatch, "SHIFT")
    once, _ = moments(distorted(bars(9), 1.0, generator(3)))
    twice, _ = moments(distorted(bars(9), 2.0, generator(3)))
    torch.testing.assert_close(twice, 2 * once, atol=0.02, rtol=0.02)


def test_values_stay_in_range_and_images_differ():
    images = distorted(bars(5), 3.0, generator())
    assert images.shape == (5, 1, SIZE, SIZE)
    assert 0 <= images.min() <= images.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in images}) == 5


def stream(**options):
    made = EpisodeStream(source="digits", ways=2, shots=1, queries=2, **options)
    made.setup()
    return made


def images_of(tasks):
    return torch.cat([b.inputs["images"] for t in tasks for b in (*t.support, t.query)])


def test_training_episodes_are_distorted_and_no_others():
    plain, moved = stream(), stream(distortion=1.0)
    for split in ("train", "validation", "test"):
        before, after = plain.tasks(split, 3), moved.tasks(split, 3)
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one.query.rows, other.query.rows)
            assert torch.equal(one.support[0].rows, other.support[0].rows)
        same = torch.equal(images_of(before), images_of(after))
        assert same == (split != "train")
    # A function of the index: a run that is resumed sees the same.
    assert torch.equal(
        images_of(moved.tasks("train", 2, 1)), images_of(moved.tasks("train", 3)[1:])
    )


def test_no_two_images_are_distorted_alike():
    table = Table({"images": bars(12)}, torch.arange(12) // 6, ("a", "b"))
    rows = table.by_class(torch.arange(12))
    episodes = Episodes(table, rows, ways=2, shots=2, queries=3, seed=(0,), distortion=1.0)
    images = images_of([episodes.task(0), episodes.task(1)])
    assert len(images) == 20
    assert len({tuple(image.flatten().tolist()) for image in images}) == 20


@pytest.mark.parametrize("distortion", [-0.1, 3.5, math.nan])
def test_a_strength_out_of_range(distortion):
    with pytest.raises(UsageError, match=f"distortion is {distortion}: give 0 to 3"):
        EpisodeStream(source="digits", distortion=distortion)


def test_texts_are_not_distorted():
    made = EpisodeStream(source="topics", ways=2, distortion=1.0)
    with pytest.raises(UsageError, match=r"distortion: 1\.0 is for images"):
        made.setup()
