"""Augmentation of a whole batch at once, the same pixels wherever and whenever it runs.

What happens to a sample is drawn from a counter-based generator keyed by (seed, view,
sample index): view v of sample i does not depend on batch size, device, order or ranks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.utils.errors import UserError


def draw(seed: int, view: int, index: Tensor, stream: int, choices: int) -> Tensor:
    """Whole numbers in 0…choices−1 for the samples at ``index``, B.

    Each is a hash of (seed, view, index, stream) by the finaliser of SplitMix64
    (Steele, Lea, Flood 2014), on int64 that wraps around. ``stream`` tells apart the
    draws that one sample needs.
    """
    key = torch.full_like(index, seed)
    for word in (view, stream, index):
        key = _mix(key * _GOLDEN + word)
    return _shift_right(key, 32) * choices >> 32


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift_right(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class Augment:
    """Random shifts and mirror images.

    Args:
        shift: up to this many pixels in each direction, zeros moving in; on padded colour
            images this is the usual random crop.
        flip: mirror half of the samples left to right.
        views: how many versions there are of a sample; epoch e shows version e mod views.
            0 for a new one every epoch, which no cache can hold.
        seed: decides the versions.

    Raises:
        UserError: if shift or views is negative.
    """

    def __init__(self, shift: int = 0, flip: bool = False, views: int = 0, seed: int = 0) -> None:
        if shift < 0 or views < 0:
            raise UserError(f"augment.shift and augment.views cannot be negative: {shift}, {views}")
        self.shift, self.flip, self.seed = shift, flip, seed
        self.views = views if shift or flip else 1

    def __repr__(self) -> str:
        """All that decides what a view looks like; caches are keyed by it."""
        settings = {k: v for k, v in vars(self).items() if k != "views"}
        return f"{type(self).__module__}.{type(self).__qualname__}({settings})"

    def __call__(self, x: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Images, B×C×H×W of any type, of the samples at ``index``, B, as an epoch shows them."""
        view = epoch % self.views if self.views else epoch
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
    """The H×W windows of images padded by ``margin``, at each sample's own top and left, B."""
    samples, channels, height, width = x.shape
    padded = F.pad(x, (margin,) * 4)
    rows = top.view(-1, 1, 1, 1) + torch.arange(height, device=x.device).view(-1, 1)
    columns = left.view(-1, 1, 1, 1) + torch.arange(width, device=x.device)
    sample = torch.arange(samples, device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=x.device).view(-1, 1, 1)
    return padded[sample, channel, rows, columns]
