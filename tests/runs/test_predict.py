"""Tests of the layouts of images that a loaded run takes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_lightning.runs.load import channels_first
from kd_lightning.utils.errors import UserError

COLOUR = torch.arange(4 * 3 * 5 * 6, dtype=torch.uint8).reshape(4, 3, 5, 6)
GREY = COLOUR[:, :1]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (COLOUR, COLOUR),
        (COLOUR.permute(0, 2, 3, 1), COLOUR),
        (COLOUR[2], COLOUR[2:3]),
        (COLOUR[2].permute(1, 2, 0), COLOUR[2:3]),
        (GREY, GREY),
        (GREY.permute(0, 2, 3, 1), GREY),
        (GREY[:, 0], GREY),
        (GREY[1], GREY[1:2]),
        (GREY[1, 0], GREY[1:2]),
        (GREY[1].permute(1, 2, 0), GREY[1:2]),
        (COLOUR[:0], COLOUR[:0]),
    ],
)
def test_every_layout_gives_channels_first(images: Tensor, expected: Tensor) -> None:
    shape = tuple(expected.shape[1:])
    assert torch.equal(channels_first(images, shape), expected)
    array = np.asarray(images)
    assert torch.equal(channels_first(torch.as_tensor(array), shape), expected)


@pytest.mark.parametrize(
    "images",
    [
        COLOUR[:, :, :4],
        COLOUR.flatten(1),
        COLOUR.permute(0, 3, 2, 1),
        torch.zeros(2, 2, 3, 5, 6, dtype=torch.uint8),
        torch.zeros(5, dtype=torch.uint8),
    ],
)
def test_what_does_not_fit_is_one_line(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"fit no layout: this run takes N×3×5×6 or N×5×6×3$"):
        channels_first(images, (3, 5, 6))


def test_an_ambiguous_shape_is_refused() -> None:
    images = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    with pytest.raises(UserError, match="fit several layouts"):
        channels_first(images, (3, 3, 3))
