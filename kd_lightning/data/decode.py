"""Decoding of image files to squares of one size."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

from kd_lightning.utils.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Of one image. Pillow warns above it: a small file can unfold to any number of pixels.
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
BY_TORCHVISION = ("JPEG", "PNG")  # twice as fast as Pillow, which decodes the other formats
MODES = {1: (ImageReadMode.GRAY, "L"), 3: (ImageReadMode.RGB, "RGB")}  # by number of channels


def read_image(file: str | Path, size: int, channels: int = 3) -> Tensor:
    """Decode an image and resize its central square.

    The orientation in its EXIF data is applied, transparency is dropped, and an animation is
    represented by its first frame.

    Args:
        file: a file with one of the :data:`SUFFIXES`.
        size: side of the result in pixels, S.
        channels: 3 for colour, 1 for grey.

    Returns:
        C×S×S, uint8.

    Raises:
        UserError: if the file is missing, damaged, not an image, or has too many pixels.
    """
    try:
        x = _decode(file, channels)
    except Exception as error:  # each decoder raises its own types for damage
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{file} cannot be read as an image: {reason}") from error
    # Cropped first: resizing all of a very long image would take any amount of memory.
    return F.resize(F.center_crop(x, [min(x.shape[-2:])] * 2), [size, size], antialias=True)


def read_images(files: Sequence[str | Path], size: int, channels: int = 3) -> Tensor:
    """Decode several images with :func:`read_image`; return N×C×S×S, uint8."""
    return torch.stack([read_image(file, size, channels) for file in files])


def _decode(file: str | Path, channels: int) -> Tensor:
    with Image.open(file) as image:  # reads the header only
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}×{image.height} pixels are too many")
        if image.format in BY_TORCHVISION:
            x = decode_image(str(file), mode=MODES[channels][0], apply_exif_orientation=True)
            return F.to_dtype(x, torch.uint8, scale=True)  # PNG also has images of 16 bits
        upright = ImageOps.exif_transpose(image).convert(MODES[channels][1])
        return F.pil_to_tensor(upright)
