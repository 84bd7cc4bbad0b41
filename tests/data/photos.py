"""Small folders of photos for tests, written from images of CIFAR-100 or of any colour."""

from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """A smooth colour image, different for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def write_folder(root: Path, classes: dict[str, int], start: int = 0) -> Path:
    """Write ``root/CLASS/N.png`` with a number of images a class."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            photo(start + hash_of(name) + i).save(root / name / f"{i}.png")
    return root


def hash_of(name: str) -> int:
    """A number that differs for each class, the same in every process."""
    return sum(map(ord, name)) * 1000
