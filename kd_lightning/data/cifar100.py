"""CIFAR-100: 50,000 + 10,000 colour images of 32×32 in a hundred classes (Krizhevsky 2009).

The data are read from contact sheets where they exist, otherwise from torchvision's files. A
sheet is a lossless WebP image of 50 × 50 samples, row by row, in the official order; the
labels are in an .npy file.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from kd_lightning.data.batches import Split
from kd_lightning.data.published import PublishedDataModule
from kd_lightning.utils.errors import UserError

GRID, SIDE = 50, 32  # samples per row and column of a sheet; pixels per side of a sample
A_SHEET = GRID**2  # samples per sheet


class CIFAR100DataModule(PublishedDataModule):
    """CIFAR-100 with its fine classes.

    Sheets are read from ``root/cifar100``, torchvision's files from
    ``root/cifar-100-python``. Arguments and errors are those of
    :class:`~kd_lightning.data.published.PublishedDataModule`.
    """

    source: type[CIFAR100] = CIFAR100

    def load(self) -> tuple[Split, Split]:
        # Sheets take precedence over the pickles: they contain no code, and a copy of them can
        # be shared without the 169 MB download.
        if self._sheets.is_dir():
            return read_sheets(self._sheets, "train"), read_sheets(self._sheets, "test")
        return self._read(train=True), self._read(train=False)

    def is_there(self) -> bool:
        names = [name for name, _ in (*self.source.train_list, *self.source.test_list)]
        files = [self._official / name for name in (*names, self.source.meta["filename"])]
        return self._sheets.is_dir() or all(file.is_file() for file in files)

    @property
    def _sheets(self) -> Path:
        return self.root / "cifar100"

    @property
    def _official(self) -> Path:
        return self.root / self.source.base_folder

    def _read(self, train: bool) -> Split:
        try:
            # torchvision unpickles a file only if its MD5 sum is the published one
            data = self.source(str(self.root), train=train)
        except Exception as error:
            raise UserError(
                f"the files in {self._official} are damaged or not the official ones: delete "
                "them to download them again, or point data.root= to a good copy"
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return Split(images, torch.tensor(data.targets))


def read_sheets(folder: Path, part: str) -> Split:
    """Read one part from its sheets.

    Args:
        folder: the folder of the sheets.
        part: ``train`` or ``test``.

    Returns:
        The samples; the number of labels determines how many sheets are read.

    Raises:
        UserError: if a file is missing, damaged or of another kind.
    """
    labels = _labels(folder / f"{part}-fine.npy")
    sheets = [folder / f"{part}-{n:02}.webp" for n in range(len(labels) // A_SHEET)]
    # threads, not processes: Pillow's decoder releases the GIL, and nothing needs to be copied
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = np.concatenate([*pool.map(_images, sheets)])
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _labels(file: Path) -> np.ndarray:
    with _reading(file):
        labels = np.load(file, allow_pickle=False)
        # np.load returns an archive for a zip file, whatever its name ends in
        _expect(isinstance(labels, np.ndarray), "it is an archive")
        one_each = labels.ndim == 1 and labels.size > 0 and labels.size % A_SHEET == 0
        _expect(one_each and labels.dtype == np.uint8, f"{labels.dtype} {labels.shape}")
        _expect(labels.max() < 100, f"it contains label {labels.max()}")
        return labels


def _images(file: Path) -> np.ndarray:
    """Return the samples of a sheet, N×3×32×32 uint8, N = 2,500."""
    # Restricting Pillow to WebP keeps a foreign file away from its other, rarely used decoders.
    with _reading(file), Image.open(file, formats=["WEBP"]) as sheet:
        sound = sheet.mode == "RGB" and sheet.size == (GRID * SIDE, GRID * SIDE)
        _expect(sound, f"{sheet.mode} {sheet.size}")
        tiles = np.asarray(sheet).reshape(GRID, SIDE, GRID, SIDE, 3)
    return tiles.transpose(0, 2, 4, 1, 3).reshape(A_SHEET, 3, SIDE, SIDE)


def _expect(condition: bool, found: str) -> None:
    if not condition:
        raise ValueError(found)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Convert any error while reading a file into a UserError of one line.

    Raises:
        UserError: if the body raises.
    """
    try:
        yield
    except Exception as error:  # NumPy and Pillow each raise their own for damaged files
        found = f"damaged or of another kind ({error})" if file.exists() else "missing"
        raise UserError(
            f"{file} is {found}: point data.root= to a good copy, or delete the folder "
            f"{file.parent} to download the data"
        ) from error
