"""A user's own images: one ``.npz`` archive with x_train, y_train, x_test and y_test.

Optionally it has x_unlabelled, more training images.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.batches import Split
from kd_lightning.data.images import ImageDataModule
from kd_lightning.utils.errors import UserError

KEYS = ("x_train", "y_train", "x_test", "y_test")
UNLABELLED_IMAGES = "x_unlabelled"


class ArraysDataModule(ImageDataModule):
    """Images and labels from a NumPy archive.

    Args:
        path: the archive. Images have shape N×H×W (grey), N×H×W×C or N×C×H×W with C = 1 or 3
            and are uint8, or floats in 0…1, which are rounded to 256 levels. Labels have
            shape N and are integers starting at 0. ``x_unlabelled`` is optional.
        **settings: see :class:`~kd_lightning.data.images.ImageDataModule`.

    Raises:
        UserError: if the file is missing or damaged, or an array is missing or has the wrong
            shape, type or values.
    """

    def __init__(self, path: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.path = Path(path)

    def load(self) -> tuple[Split, Split]:
        arrays = self._arrays()
        self._others = self._images(arrays, "unlabelled") if UNLABELLED_IMAGES in arrays else None
        train, test = (self._split(arrays, part) for part in ("train", "test"))
        if train.inputs.shape[1:] != test.inputs.shape[1:]:
            raise UserError(
                f"{self.path}: x_train has samples of shape {tuple(train.inputs.shape[1:])}, "
                f"x_test of shape {tuple(test.inputs.shape[1:])}; store both in one shape"
            )
        # The training labels alone define the classes: a network has no output for a class
        # that occurs only in the test labels, and its loss would fail after the training.
        classes = int(train.target.max()) + 1
        if classes < 2:
            raise UserError(
                f"{self.path}: y_train contains a single class; it needs at least two classes"
            )
        if classes > len(train.target):
            raise UserError(
                f"{self.path}: y_train contains label {classes - 1} but has {len(train.target)} "
                "samples; number the classes from 0 without gaps"
            )
        if int(test.target.max()) >= classes:
            raise UserError(
                f"{self.path}: y_test contains label {int(test.target.max())}, "
                f"but y_train only 0…{classes - 1}; add training samples of that class"
            )
        return train, test

    def load_unlabelled(self) -> Tensor | None:
        return self._others

    def _arrays(self) -> dict[str, np.ndarray]:
        if not self.path.exists():
            raise UserError(f"data.path: there is no file {self.path}")
        # Checked first because np.load also opens single arrays (.npy) and offers to unpickle
        # anything else, with an error message that suggests allow_pickle=True.
        if not is_zipfile(self.path):
            raise UserError(
                f"{self.path} is not an .npz archive, or is truncated; "
                "write one with np.savez or np.savez_compressed"
            )
        try:
            # allow_pickle=False: unpickling would let an archive execute code
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                missing = [k for k in KEYS if k not in archive]
                if missing:
                    raise UserError(
                        f"{self.path} has no {', '.join(missing)}; it needs {', '.join(KEYS)}"
                    )
                return {k: archive[k] for k in (*KEYS, UNLABELLED_IMAGES) if k in archive}
        except UserError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy each raise their own for damage
            raise UserError(f"{self.path} cannot be read as .npz: {error}") from error

    def _split(self, arrays: Mapping[str, np.ndarray], part: str) -> Split:
        """Check one part, ``train`` or ``test``, and convert it to tensors."""
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        images = self._images(arrays, part)
        # float labels are refused, not rounded: 0.5 is a mistake and 1.0 may be a soft label
        if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
            raise UserError(
                f"{self.path}: y_{part} must be a vector of integers, one per sample; "
                f"it is {y.dtype} of shape {y.shape}"
            )
        if len(x) != len(y) or len(y) == 0:
            raise UserError(
                f"{self.path}: x_{part} has {len(x)} samples and y_{part} has {len(y)} labels; "
                "the numbers must be equal and not zero"
            )
        if y.min() < 0:
            raise UserError(f"{self.path}: y_{part} contains label {y.min()}; labels start at 0")
        return Split(images, torch.from_numpy(y.astype(np.int64)))

    def _images(self, arrays: Mapping[str, np.ndarray], part: str) -> Tensor:
        """Return the images of one part, N×C×H×W uint8."""
        return torch.from_numpy(self._channels_first(self._bytes(arrays[f"x_{part}"], part), part))

    def _bytes(self, x: np.ndarray, part: str) -> np.ndarray:
        if x.dtype == np.uint8:
            return x
        # Floats become bytes, a quarter of the memory; images stored as byte/255 are exact.
        # Rounding, because truncation would lose a level wherever x is stored as less than
        # byte/255, as 51 % of the levels are in float16.
        if np.issubdtype(x.dtype, np.floating) and x.size and x.min() >= 0 and x.max() <= 1:
            return np.rint(x * 255).astype(np.uint8)
        raise UserError(
            f"{self.path}: x_{part} must be uint8, or floats in 0…1; it is {x.dtype}"
            + (f" from {x.min()} to {x.max()}" if x.size and x.dtype.kind in "iuf" else "")
        )

    def _channels_first(self, x: np.ndarray, part: str) -> np.ndarray:
        """Return images of any accepted layout as contiguous N×C×H×W."""
        if 0 in x.shape[1:]:
            raise UserError(f"{self.path}: x_{part} contains empty images; its shape is {x.shape}")
        if x.ndim == 3:
            return np.ascontiguousarray(x[:, None])
        # Channels last is tried first, as it is what image libraries write. N×3×H×3 is
        # ambiguous and read as three rows of pixels.
        if x.ndim == 4 and x.shape[-1] in (1, 3):
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        if x.ndim == 4 and x.shape[1] in (1, 3):
            return np.ascontiguousarray(x)
        raise UserError(
            f"{self.path}: x_{part} must be N×H×W, N×H×W×C or N×C×H×W with 1 or 3 channels; "
            f"its shape is {x.shape}"
        )
