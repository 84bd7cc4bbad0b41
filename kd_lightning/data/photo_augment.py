"""Augmentation of photos: random-resized crop, flip and colour jitter, of whole batches."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.data.augment import Augment, draw
from kd_lightning.utils.errors import UserError

# Draws a number of each sample, B, from a stream of random numbers between two limits.
Uniform = Callable[[int, float, float], Tensor]

LEVELS = 2**16  # of a uniform random number
GREY = (0.299, 0.587, 0.114)  # luma of red, green and blue, ITU-R BT.601
# From red, green and blue to luma and the two chromaticities of YIQ, in which a change of hue is a
# rotation.
YIQ = (GREY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


class PhotoAugment(Augment):
    """Random-resized crop (Szegedy et al. 2015, arXiv 1409.4842), flip, and colour jitter.

    The random numbers are a function of (seed, view, index) alone, as those of
    :class:`~kd_lightning.data.augment.Augment`, and the images are processed on their device.

    Args:
        scale: smallest and largest area of a crop, as a share of the image, in 0…1.
        ratio: smallest and largest ratio of its width to its height.
        flip: flip half of the samples left to right.
        brightness: factors are drawn from [1 − brightness, 1 + brightness].
        contrast: as for brightness; relative to the mean luma of the image.
        saturation: as for brightness; 1 leaves the colours, 0 makes the image grey.
        hue: angles are drawn from ±hue, as a fraction of a full turn, at most 0.5. The colours are
            rotated in YIQ, as NVIDIA DALI does, and not in HSV, as torchvision does.
        views: see :class:`~kd_lightning.data.augment.Augment`.
        seed: seed of the random numbers.

    Raises:
        UserError: if a value is out of range.
    """

    def __init__(
        self,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: bool = True,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        views: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(flip=flip, views=views, seed=seed)
        _check_range("scale", scale, 1.0)
        _check_range("ratio", ratio, math.inf)
        jitter = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, value in jitter.items():
            if not 0 <= value <= 1:
                raise UserError(f"augment.{name} must lie in 0…1, got {value}")
        if not 0 <= hue <= 0.5:
            raise UserError(f"augment.hue must lie in 0…0.5, got {hue}")
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue, self.views = hue, views

    def view(self, x: Tensor, index: Tensor, view: int, size: int | None) -> Tensor:
        def uniform(stream: int, low: float, high: float) -> Tensor:
            drawn = draw(self.seed, view, index, stream, LEVELS)
            return low + (high - low) * (drawn + 0.5) / LEVELS

        theta = self._crop(uniform, x.shape[-1] / x.shape[-2])
        shape = [len(x), x.shape[1], size or x.shape[-2], size or x.shape[-1]]
        grid = F.affine_grid(theta, shape, align_corners=False)
        # Without anti-aliasing: stored images are at most twice as large as those seen.
        y = F.grid_sample(x.float(), grid, padding_mode="border", align_corners=False)
        return self._jitter(y, uniform).round_().to(x.dtype)

    def _crop(self, uniform: Uniform, aspect: float) -> Tensor:
        """Return the affine map from each crop to its image, B×2×3, in coordinates of −1…1."""
        area = uniform(3, *self.scale)
        log_ratio = uniform(4, *map(math.log, self.ratio))
        # Clamped, where torchvision draws again: a loop would depend on the whole batch.
        width = (area * log_ratio.exp() / aspect).sqrt().clamp(max=1.0)
        height = (area / log_ratio.exp() * aspect).sqrt().clamp(max=1.0)
        x, y = ((1 - side) * uniform(s, -1, 1) for s, side in ((5, width), (6, height)))
        sign = torch.where(uniform(0, 0, 1) < 0.5, -1.0, 1.0) if self.flip else 1.0
        zero = torch.zeros_like(x)
        rows = [sign * width, zero, x, zero, height, y]
        return torch.stack(rows, dim=1).view(-1, 2, 3)

    def _jitter(self, x: Tensor, uniform: Uniform) -> Tensor:
        """Change the colours of images, B×C×H×W in 0…255."""

        def factor(stream: int, width: float) -> Tensor:
            return uniform(stream, 1 - width, 1 + width).view(-1, 1, 1, 1).to(x)

        if self.brightness:
            x = (x * factor(7, self.brightness)).clamp_(0, 255)
        if self.contrast:
            mean = _grey(x).mean((1, 2, 3), keepdim=True)
            x = torch.lerp(mean, x, factor(8, self.contrast)).clamp_(0, 255)
        if x.shape[1] == 3 and (self.saturation or self.hue):
            by = factor(9, self.saturation).view(-1)
            angle = uniform(10, -self.hue, self.hue).to(x) * 2 * math.pi
            turned = _colour_matrix(by, angle) @ x.flatten(2)
            x = turned.view_as(x).clamp_(0, 255)
        return x


def _colour_matrix(saturation: Tensor, angle: Tensor) -> Tensor:
    """Return the linear map of red, green and blue that scales and turns chromaticities, B×3×3."""
    to_yiq = torch.tensor(YIQ, device=angle.device)
    cos, sin = saturation * angle.cos(), saturation * angle.sin()
    one, zero = torch.ones_like(cos), torch.zeros_like(cos)
    rows = [one, zero, zero, zero, cos, -sin, zero, sin, cos]
    return to_yiq.inverse() @ torch.stack(rows, dim=1).view(-1, 3, 3) @ to_yiq


def _grey(x: Tensor) -> Tensor:
    """Return the luma of images, B×1×H×W."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * torch.tensor(GREY, device=x.device).view(-1, 1, 1)).sum(1, keepdim=True)


def _check_range(name: str, pair: Sequence[float], most: float) -> None:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
        limit = "0…1" if most == 1 else "above 0"
        raise UserError(f"augment.{name} must be two numbers in rising order, {limit}, got {pair}")
