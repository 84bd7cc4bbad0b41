"""Tests of how a file is verified: the sizes of batches, and the rules for int8."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from kd_lightning.compress.verify import verify
from kd_lightning.data.types import ImageSpec

SPEC = ImageSpec((1, 2, 2), 4, (0.5,), (0.25,))
NET = nn.Flatten().eval()  # four logits
LABELS = torch.arange(200) % 4


class Quantised:
    """Stands for a runtime of a file in int8 that errs on some images and is inexact on all."""

    def __init__(self, wrong: int, share: float | None) -> None:
        self.left, self.sizes = wrong, []
        if share is not None:
            self.int8_share = share

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.sizes.append(len(images))
        logits = NET((torch.from_numpy(images).float() / 255 - 0.5) / 0.25).numpy() * 0.9
        for row in logits:
            if self.left:
                row[:] = np.roll(row, 1)
                self.left -= 1
        return logits, logits


def samples() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """200 images, all of which the network answers rightly, in two parts."""
    images = 255 * nn.functional.one_hot(LABELS, 4).to(torch.uint8).reshape(200, 1, 2, 2)
    yield from zip(images.split(150), LABELS.split(150), strict=True)


@pytest.mark.parametrize(
    ("wrong", "share", "passed"),
    [(0, 1.0, True), (2, 0.95, True), (3, 1.0, False), (0, 0.94, False), (0, None, False)],
)
def test_int8_may_lose_one_point_and_must_compute_in_int8(
    wrong: int, share: float | None, passed: bool
) -> None:
    found = verify(Quantised(wrong, share), NET, SPEC, samples(), int8=True)
    assert found["passed"] == passed
    assert found["int8_share"] == (share or 0.0)
    assert found["agreement"] == found["accuracy"] == 1 - wrong / 200
    assert found["checkpoint_accuracy"] == 1
    assert found["largest_difference"] >= 0.09 * found["largest_logit"]


def test_a_file_in_float32_has_no_share_and_must_be_equal() -> None:
    found = verify(Quantised(0, 1.0), NET, SPEC, samples())
    assert not found["passed"]
    assert "int8_share" not in found


@pytest.mark.parametrize(("batches", "seen"), [((1,), {1}), ((50, 100), {50, 100})])
def test_batches_have_the_sizes_that_the_file_takes(
    batches: tuple[int, ...], seen: set[int]
) -> None:
    runtime = Quantised(0, 1.0)
    assert verify(runtime, NET, SPEC, samples(), batches=batches)["images"] == 200
    assert set(runtime.sizes) == seen
