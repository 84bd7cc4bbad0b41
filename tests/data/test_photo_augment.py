"""Tests of the augmentation of photos: geometry and colours against torchvision, and its keys."""

import math
from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from kd_lightning.data.photo_augment import PhotoAugment
from kd_lightning.utils.errors import UserError

INDEX = torch.arange(64)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth colour images, B×3×48×40 uint8."""
    small = torch.rand(64, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 255
    return F.resize(small, [48, 40], antialias=True).round().byte()


def boxes(augment: PhotoAugment, aspect: float) -> torch.Tensor:
    """Centre and half sides of each crop in −1…1, B×4, and whether it is mirrored."""
    from kd_lightning.data.augment import draw

    def uniform(stream: int, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * (draw(augment.seed, 0, INDEX, stream, 2**16) + 0.5) / 2**16

    return augment._crop(uniform, aspect)


def test_crop_equals_crop_and_resize_of_torchvision(images: torch.Tensor) -> None:
    augment = PhotoAugment(scale=(0.3, 0.9))
    found = augment(images, INDEX, epoch=0, size=24)
    assert found.shape == (64, 3, 24, 24)
    for x, y, theta in zip(images, found, boxes(augment, 40 / 48), strict=True):
        height, width = x.shape[-2:]
        w, h = abs(float(theta[0, 0])) * width, float(theta[1, 1]) * height
        left = (float(theta[0, 2]) + 1) / 2 * width - w / 2
        top = (float(theta[1, 2]) + 1) / 2 * height - h / 2
        # torchvision crops whole pixels: enlarged first, the difference is a fraction of one
        big = F.resize(x.float(), [height * 8, width * 8], antialias=True)
        cut = F.resized_crop(
            big, round(top * 8), round(left * 8), round(h * 8), round(w * 8), [24, 24],
            antialias=True,
        )  # fmt: skip
        cut = cut.flip(-1) if theta[0, 0] < 0 else cut
        assert (cut - y.float()).abs().mean() < 3


def test_crops_have_the_areas_and_ratios_asked_for() -> None:
    theta = boxes(PhotoAugment(scale=(0.2, 0.5), ratio=(0.5, 2.0)), 1.0)
    width, height = theta[:, 0, 0].abs(), theta[:, 1, 1]
    area, ratio = width * height, width / height
    assert area.min() >= 0.19
    assert area.max() <= 0.51
    assert area.max() - area.min() > 0.25
    assert (ratio.log().abs() <= math.log(2) + 1e-3).all()
    assert (theta[:, 0, 2].abs() + width <= 1 + 1e-6).all()  # inside of the image
    assert (theta[:, 1, 2].abs() + height <= 1 + 1e-6).all()


def test_identity_leaves_pixels_alone(images: torch.Tensor) -> None:
    augment = PhotoAugment(scale=(1.0, 1.0), ratio=(40 / 48, 40 / 48), flip=False)
    assert (augment(images, INDEX, epoch=3).int() - images.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "function", "stream"),
    [
        ("brightness", F.adjust_brightness, 7),
        ("contrast", F.adjust_contrast, 8),
        ("saturation", F.adjust_saturation, 9),
    ],
)
def test_colours_equal_those_of_torchvision(
    images: torch.Tensor, name: str, function: Any, stream: int
) -> None:
    from kd_lightning.data.augment import draw

    still = {"scale": (1.0, 1.0), "ratio": (40 / 48, 40 / 48), "flip": False}
    found = PhotoAugment(**still, **{name: 0.6})(images, INDEX, epoch=0)
    factors = 0.4 + 1.2 * (draw(0, 0, INDEX, stream, 2**16) + 0.5) / 2**16
    assert factors.max() - factors.min() > 1
    for x, y, factor in zip(images, found, factors.tolist(), strict=True):
        expected = function(x.float() / 255, factor) * 255
        assert (expected - y.float()).abs().max() <= 2


def test_hue_keeps_luma_and_turns_the_colours(images: torch.Tensor) -> None:
    still = {"scale": (1.0, 1.0), "ratio": (40 / 48, 40 / 48), "flip": False}
    muted = (images.float() * 0.2 + 100).byte()  # away from the limits of 0 and 255
    found = PhotoAugment(**still, hue=0.5)(muted, INDEX, epoch=0)
    grey, before = (F.rgb_to_grayscale(x.float()) for x in (found, muted))
    assert (grey - before).abs().max() <= 2
    assert (found.float() - muted.float()).abs().mean() > 3


def test_views_depend_on_seed_view_and_index_alone(images: torch.Tensor) -> None:
    augment = PhotoAugment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, views=3, seed=5)
    whole = augment(images, INDEX, epoch=1, size=32)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    pieces = [augment(images[i], i, epoch=1, size=32) for i in order.split(7)]
    assert (torch.cat(pieces).int() - whole[order].int()).abs().max() <= 1
    assert torch.equal(augment(images, INDEX, epoch=4, size=32), whole)
    others = [augment(images, INDEX, epoch=2, size=32)]
    others.append(PhotoAugment(views=3, seed=6)(images, INDEX, epoch=1, size=32))
    for other in others:
        assert not torch.equal(other, whole)


def test_grey_images_are_jittered_too(images: torch.Tensor) -> None:
    augment = PhotoAugment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    assert augment(images[:, :1], INDEX, epoch=0, size=24).shape == (64, 1, 24, 24)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scale": (0.0, 1.0)}, "augment.scale must be two numbers in rising order, 0…1"),
        ({"scale": (0.5, 1.1)}, "augment.scale"),
        ({"ratio": (2.0, 1.0)}, "augment.ratio must be two numbers in rising order, above 0"),
        ({"brightness": 1.5}, "augment.brightness must lie in 0…1"),
        ({"hue": 0.6}, "augment.hue must lie in 0…0.5"),
        ({"views": -1}, "augment.views"),
    ],
)
def test_settings_out_of_range(setting: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PhotoAugment(**setting)
