"""Augmentation of whole batches, reproducible for every sample and view.

The random numbers come from a counter-based generator keyed by (seed, view, sample index).
View v of sample i therefore does not depend on the batch size, device, order or rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.utils.errors import UserError


def draw(seed: int, view: int, index: Tensor, stream: int, choices: int) -> Tensor:
    """Return one random integer in 0…choices−1 for each sample.

    Each is a hash of (seed, view, index, stream) by the finaliser of SplitMix64
    (Steele, Lea, Flood 2014), computed in wrapping int64 arithmetic.

    Args:
        seed: seed of the augmentation.
        view: number of the view.
        index: position of each sample in its split, B, int64.
        stream: distinguishes the draws of one sample and view.
        choices: number of possible values.

    Returns:
        B, int64, on the device of ``index``.
    """
    # A torch.Generator would make a sample depend on those drawn before it, and its numbers
    # differ between CPU and GPU. Integer arithmetic is the same everywhere.
    key = torch.full_like(index, seed)
    for word in (view, stream, index):
        key = _mix(key * _GOLDEN + word)
    # multiply-shift instead of a modulo: no integer division, and a bias below choices / 2**32
    return _shift_right(key, 32) * choices >> 32


# SplitMix64's increment, written as int64: torch has no arithmetic on uint64
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift_right(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's operator fills with the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class Augment:
    """Random shifts and horizontal flips.

    Args:
        shift: largest shift in pixels, in each direction; zeros fill the margin. On small
            colour images this is the usual random crop after padding.
        flip: flip half of the samples left to right.
        views: number of versions of each sample; epoch e uses version e mod views. With 0
            every epoch has a new version, so teacher outputs cannot be cached.
        seed: seed of the random numbers.

    Raises:
        UserError: if shift or views is negative.
    """

    def __init__(self, shift: int = 0, flip: bool = False, views: int = 0, seed: int = 0) -> None:
        if shift < 0 or views < 0:
            raise UserError(
                f"augment.shift and augment.views cannot be negative; got {shift} and {views}"
            )
        self.shift, self.flip, self.seed = shift, flip, seed
        # an identity has one view whatever was asked for, so its teacher outputs can be cached
        self.views = views if shift or flip else 1

    def __repr__(self) -> str:
        """Return everything that determines a view's pixels; cache keys contain it."""
        # The number of views is left out because no view's pixels depend on it; the keys that
        # do depend on it include it separately.
        settings = {k: v for k, v in vars(self).items() if k != "views"}
        return f"{type(self).__module__}.{type(self).__qualname__}({settings})"

    def __call__(self, x: Tensor, index: Tensor, epoch: int, size: int | None = None) -> Tensor:
        """Return the version of each image that belongs to an epoch.

        Args:
            x: images, B×C×H×W uint8.
            index: position of each in its split, B, int64.
            epoch: number of the epoch, from 0.
            size: side of the images that the networks see; by default, all of each image. Larger
                images are cropped afterwards.

        Returns:
            B×C×H×W uint8, or B×C×size×size.
        """
        return self.view(x, index, epoch % self.views if self.views else epoch, size)

    def view(self, x: Tensor, index: Tensor, view: int, size: int | None) -> Tensor:
        """Return one version of each image; the arguments are those of a call."""
        if self.flip:
            mirrored = draw(self.seed, view, index, stream=0, choices=2).bool()
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
        if self.shift:
            down, right = (
                draw(self.seed, view, index, stream, choices=2 * self.shift + 1)
                for stream in (1, 2)
            )
            x = _window(x, self.shift, down, right)
        return x


def _window(x: Tensor, margin: int, top: Tensor, left: Tensor) -> Tensor:
    """Return the H×W windows of padded images, at each sample's own top and left, B."""
    samples, channels, height, width = x.shape
    padded = F.pad(x, (margin,) * 4)
    # One gather for the whole batch. grid_sample would interpolate, and needs floats: the
    # images are still bytes here, a quarter of the memory traffic.
    rows = top.view(-1, 1, 1, 1) + torch.arange(height, device=x.device).view(-1, 1)
    columns = left.view(-1, 1, 1, 1) + torch.arange(width, device=x.device)
    sample = torch.arange(samples, device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=x.device).view(-1, 1, 1)
    return padded[sample, channel, rows, columns]
