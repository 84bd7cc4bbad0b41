"""CIFAR-100: 50,000 + 10,000 colour images of 32×32 in a hundred classes (Krizhevsky 2009).

Read from sheets where there are any, else from torchvision's own copy. A sheet is a lossless
WebP picture of 50 × 50 images, row by row, in the official order; its labels are in an .npy.
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

GRID, SIDE = 50, 32  # images a row and a column of a sheet, pixels of an image
A_SHEET = GRID**2


class CIFAR100DataModule(PublishedDataModule):
    """The hundred fine classes, out of ``root/cifar100`` or ``root/cifar-100-python``.

    See :class:`~kd_lightning.data.published.PublishedDataModule`.
    """

    source: type[CIFAR100] = CIFAR100

    def load(self) -> tuple[Split, Split]:
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
            # pickles: torchvision opens them only if their MD5 sums are the published ones
            data = self.source(str(self.root), train=train)
        except Exception as error:
            raise UserError(
                f"the files in {self._official} are not the official ones, or damaged: delete "
                "them to download them again, or point data.root= to a good copy"
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return Split(images, torch.tensor(data.targets))


def read_sheets(folder: Path, part: str) -> Split:
    """The samples of a part, ``train`` or ``test``: as many sheets as there are labels for."""
    labels = _labels(folder / f"{part}-fine.npy")
    sheets = [folder / f"{part}-{n:02}.webp" for n in range(len(labels) // A_SHEET)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders hold no lock of Python's
        images = np.concatenate([*pool.map(_images, sheets)])
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _labels(file: Path) -> np.ndarray:
    with _reading(file):
        labels = np.load(file, allow_pickle=False)
        _expect(isinstance(labels, np.ndarray), "it is an archive")
        one_each = labels.ndim == 1 and labels.size > 0 and labels.size % A_SHEET == 0
        _expect(one_each and labels.dtype == np.uint8, f"{labels.dtype} {labels.shape}")
        _expect(labels.max() < 100, f"it holds label {labels.max()}")
        return labels


def _images(file: Path) -> np.ndarray:
    """The images of a sheet, N×3×32×32 uint8, N = 2,500."""
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
    """Whatever reading a missing, damaged or foreign file leads to ends in one line."""
    try:
        yield
    except Exception as error:
        found = f"damaged or of another kind ({error})" if file.exists() else "missing"
        raise UserError(
            f"{file} is {found}: point data.root= to a good copy, or remove the folder "
            f"{file.parent} to download the data"
        ) from error
