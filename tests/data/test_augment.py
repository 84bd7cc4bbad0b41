"""Tests of augmentation: the pixels of a sample depend on its index and view alone."""

import pytest
import torch

from kd_lightning.data.augment import Augment, draw
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.utils.errors import UserError


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (64, 3, 12, 10), generator=torch.Generator().manual_seed(0)).byte()


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Return a shifted image, computed pixel by pixel, with zeros in the margin."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                result[:, y + down, x + right] = image[:, y, x]
    return result


def test_shift_moves_each_image_by_its_own_offset(images: torch.Tensor) -> None:
    out = Augment(shift=2)(images, torch.arange(64), epoch=0)
    for i, (before, after) in enumerate(zip(images, out, strict=True)):
        down, right = (int(draw(0, 0, torch.tensor([i]), s, choices=5)) - 2 for s in (1, 2))
        # a window further down shows the image further up
        assert torch.equal(after, shifted(before, -down, -right))


def test_shift_reaches_every_offset_and_no_other(images: torch.Tensor) -> None:
    copies = images[:1].expand(1000, -1, -1, -1)
    out = Augment(shift=2)(copies, torch.arange(1000), epoch=0)
    offsets = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    counts = [(out == shifted(images[0], *o)).flatten(1).all(1).sum().item() for o in offsets]
    assert min(counts) > 0
    assert sum(counts) == 1000


def test_flip_mirrors_half_of_the_images(images: torch.Tensor) -> None:
    copies = images[:1].expand(1000, -1, -1, -1)
    out = Augment(flip=True)(copies, torch.arange(1000), epoch=0)
    same, mirrored = ((out == x).flatten(1).all(1).sum() for x in (copies, copies.flip(-1)))
    assert same + mirrored == 1000
    assert 437 <= mirrored <= 563  # four standard deviations of a fair coin


def test_batch_size_and_order_do_not_matter(images: torch.Tensor) -> None:
    augment = Augment(shift=3, flip=True, seed=7)
    index = torch.arange(64)
    whole = augment(images, index, epoch=5)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    pieces = [augment(images[i], i, epoch=5) for i in order.split(7)]
    assert torch.equal(torch.cat(pieces), whole[order])


def test_epochs_repeat_after_the_number_of_views(images: torch.Tensor) -> None:
    augment, index = Augment(shift=2, views=3), torch.arange(64)
    epochs = [augment(images, index, epoch) for epoch in range(6)]
    assert all(torch.equal(epochs[e], epochs[e + 3]) for e in range(3))
    assert not any(torch.equal(epochs[e], epochs[(e + 1) % 3]) for e in range(3))
    endless = Augment(shift=2)
    assert not torch.equal(endless(images, index, 0), endless(images, index, 3))


def test_different_seeds_give_different_views(images: torch.Tensor) -> None:
    index = torch.arange(64)
    assert not torch.equal(
        Augment(shift=2, seed=0)(images, index, 0), Augment(shift=2, seed=1)(images, index, 0)
    )


def test_draws_are_uniform_and_independent() -> None:
    index = torch.arange(100_000)
    first, second = (draw(0, 0, index, stream, choices=5) for stream in (1, 2))
    table = torch.zeros(5, 5, dtype=torch.float64)
    table.index_put_((first, second), torch.ones(100_000, dtype=torch.float64), accumulate=True)
    chi2 = ((table - 4000) ** 2 / 4000).sum().item()
    assert chi2 < 51.2  # the 99.9 % point of chi-square with 24 degrees of freedom


def test_identity_has_one_view_and_changes_nothing(images: torch.Tensor) -> None:
    augment = Augment(views=4)
    assert augment.views == 1
    assert augment(images, torch.arange(64), epoch=3) is images


@pytest.mark.parametrize("setting", [{"shift": -1}, {"views": -1}])
def test_negative_settings_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(UserError, match="cannot be negative"):
        Augment(**setting)


def test_prepared_views_equal_those_of_training() -> None:
    data = DigitsDataModule(augment=Augment(shift=2, views=2))
    data.setup()
    prepared = data.prepared("train")
    assert (prepared.views, prepared.size) == (2, len(data.splits["train"].target))
    seen = {
        (view, int(i)): x
        for view, index, inputs in prepared.batches(torch.device("cpu"))
        for i, x in zip(index, inputs, strict=True)
    }
    assert len(seen) == 2 * prepared.size
    raw = data.splits["train"].inputs[17:18]
    shown = data.augment(raw, torch.tensor([17]), epoch=3).double() / 255  # view 1
    expected = (shown - data.spec.mean[0]) / data.spec.std[0]
    torch.testing.assert_close(seen[1, 17].double(), expected[0], rtol=1e-5, atol=1e-5)
