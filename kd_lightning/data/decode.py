"""Decoding of image files to squares of one size."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kd_lightning.utils.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Of one image. Pillow warns above it: a small file can unfold to any number of pixels.
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
MODES = {1: "L", 3: "RGB"}  # Pillow's names, by number of channels


def read_image(file: str | Path | BinaryIO, size: int, channels: int = 3) -> Tensor:
    """Decode an image and resize its central square.

    The orientation in its EXIF data is applied, transparency is dropped, and an animation is
    represented by its first frame.

    Args:
        file: a file with one of the :data:`SUFFIXES`, or an open file.
        size: side of the result in pixels, S.
        channels: 3 for colour, 1 for grey.

    Returns:
        C×S×S, uint8.

    Raises:
        UserError: if the file is missing, damaged, not an image, or has too many pixels.
    """
    # Pillow, because torchvision's decoders, which are twice as fast, are deprecated since 0.29.
    try:
        if isinstance(file, str | Path) and not Path(file).is_file():
            raise ValueError("it is no file")  # a pipe would be waited for
        with Image.open(file) as image:  # reads the header only
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels are too many")
            square = _square(image, size, MODES[channels])
    except Exception as error:  # each decoder raises its own types for damage
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{file} cannot be read as an image: {reason}") from error
    return torch.from_numpy(np.array(square)).view(size, size, channels).permute(2, 0, 1)


def read_images(files: Sequence[str | Path], size: int, channels: int = 3) -> Tensor:
    """Decode several images with :func:`read_image`; return N×C×S×S, uint8."""
    return torch.stack([read_image(file, size, channels) for file in files])


def _square(image: Image.Image, size: int, mode: str) -> Image.Image:
    image.draft(mode, (size, size))  # lets a JPEG file be decoded at a fraction of its size
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip to 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    upright = ImageOps.exif_transpose(image).convert(mode)
    # The square is cut out by resize(): all of a very long image could take any amount of memory.
    side, (width, height) = min(upright.size), upright.size
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return upright.resize((size, size), Image.Resampling.BILINEAR, box=box)
