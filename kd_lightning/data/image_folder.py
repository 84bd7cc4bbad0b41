"""Folders of photos: a folder per class, images of any size."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_lightning.data.batches import Split
from kd_lightning.data.decoded import Squares, decoded, describe_unreadable
from kd_lightning.data.images import ImageDataModule
from kd_lightning.data.listing import list_folder
from kd_lightning.data.stored import StoredImages
from kd_lightning.utils.errors import UserError

log = logging.getLogger(__name__)


class ImageFolderDataModule(ImageDataModule):
    """Images in ``path/train/CLASS``, and optionally ``path/val`` and ``path/test``.

    A missing split is taken from the training images, stratified by class; images that lie in
    ``path/CLASS`` are all training images. They are decoded once to squares of ``resize`` pixels,
    see :mod:`kd_lightning.data.decoded`; networks see ``size`` pixels of them: a random crop with
    ``augment=photo``, else the centre.

    Args:
        path: the folder.
        size: side of the images that networks see, in pixels.
        resize: side of the stored images, at least ``size``; 8/7 of it by default, as 256 for 224.
        channels: 3 for colour, 1 for grey; images of the other kind are converted.
        unlabelled: folder of more training images, without labels, in any depth.
        test_size: number of test images split off the training images where there is no ``test``
            folder, or a fraction of them if below 1.
        decoded: folder of the decoded images.
        max_bytes: limit on the decoded images; above it images are decoded while training.
        num_workers: number of processes that decode while training.
        on_error: ``skip`` leaves unreadable images out and names them, ``raise`` refuses them.
        **settings: see :class:`~kd_lightning.data.images.ImageDataModule`.

    Raises:
        UserError: if a setting is out of range, or the folder does not have that structure.
    """

    def __init__(
        self,
        path: str,
        size: int = 224,
        resize: int | None = None,
        channels: int = 3,
        unlabelled: str | None = None,
        test_size: int | float = 0.1,
        decoded: str = "cache/images",
        max_bytes: float = 2e10,
        num_workers: int = 2,
        on_error: str = "skip",
        **settings: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **settings)
        stored = resize if resize is not None else round(size * 8 / 7)
        if size < 1 or not size <= stored <= 2 * size:
            # Larger ones would show networks a small part of each image, or alias.
            raise UserError(
                f"data.resize must lie between data.size and twice it, got {stored} for {size}"
            )
        if channels not in (1, 3):
            raise UserError(f"data.channels must be 1 or 3, got {channels}")
        if on_error not in ("skip", "raise"):
            raise UserError(f"data.on_error must be skip or raise, got {on_error}")
        if not max_bytes >= 0:
            raise UserError(f"data.max_bytes cannot be negative, got {max_bytes}")
        if not test_size > 0:
            raise UserError(f"data.test_size must be positive, got {test_size}")
        self.path, self.unlabelled = Path(path), Path(unlabelled) if unlabelled else None
        self.size, self.squares = size, Squares(stored, channels)
        self.test_size, self.on_error = test_size, on_error
        self.decoded, self.max_bytes = Path(decoded), max_bytes
        self._others: StoredImages | None = None
        self._given_val = 0  # number of images in the folder val, the last ones of load()

    def load(self) -> tuple[Split, Split]:
        folder = list_folder(self.path, self.unlabelled)
        found = decoded(self.decoded, folder.listing, self.squares, self.max_bytes)
        unreadable = describe_unreadable(folder.listing, found.is_readable)
        if unreadable and self.on_error == "raise":
            raise UserError(f"{unreadable}; delete them, or set data.on_error=skip")
        if unreadable:
            log.warning("%s; they are left out", unreadable)
        self.class_names = folder.class_names
        everything = Split(found.images, folder.target[found.is_readable])
        readable = found.is_readable.nonzero().flatten().tolist()
        parts = {
            split: everything.take(
                torch.tensor([i for i, k in enumerate(readable) if folder.split[k] == split]).long()
            )
            for split in ("train", "val", "test", "unlabelled")
        }
        self._check_readable(parts["train"])
        if self.unlabelled is not None:
            self._others = _images(parts["unlabelled"])
        train, test = parts["train"], parts["test"]
        if not len(test.target):
            # A generator of its own: the validation split does not depend on a test folder.
            generator = torch.Generator().manual_seed(self.split_seed)
            cut, rest = stratified(train.target, self.test_size, generator, "test")
            train, test = train.take(rest), train.take(cut)
        self._given_val = len(parts["val"].target)
        images = _images(train) + _images(parts["val"])
        return Split(images, torch.cat([train.target, parts["val"].target])), test

    def load_unlabelled(self) -> StoredImages | None:
        return self._others

    def _check_readable(self, train: Split) -> None:
        if not len(train.target):
            return  # there are unlabelled images only
        counts = torch.bincount(train.target, minlength=len(self.class_names))
        if lost := (counts == 0).nonzero().flatten().tolist():
            raise UserError(f"no image of the class {self.class_names[lost[0]]} can be read")

    def _num_classes(self, full: Split) -> int:
        return len(self.class_names)

    def _cut(self, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not self._given_val:
            return stratified(target, self.val_size, generator, "val")
        train = len(target) - self._given_val
        return torch.arange(train, len(target)), torch.randperm(train, generator=generator)


def stratified(
    target: Tensor, size: int | float, generator: torch.Generator, name: str
) -> tuple[Tensor, Tensor]:
    """Split samples so that each class has its share in both parts.

    Args:
        target: class of each sample, N.
        size: number of samples in the first part, or a fraction of them if below 1.
        generator: of the choice.
        name: of the first part, for the error.

    Returns:
        Positions of the first and of the second part, both in random order.

    Raises:
        UserError: if no samples remain for the second part.
    """
    # At least one of a small fraction; rounded first, as 0.1 · 30 is a little more than 3.
    count = math.ceil(round(size * len(target), 6)) if size < 1 else int(size)
    if not 0 < count < len(target):
        raise UserError(
            f"data.{name}_size={size} leaves no training or no {name} images out of {len(target)}"
        )
    order = torch.randperm(len(target), generator=generator)
    # The i-th of the n samples of a class has the rank (i + ½) / n. The samples of the lowest ranks
    # are a share of every class, and of exactly the size that is asked for.
    ranks = torch.empty(len(target))
    for label in target.unique():
        members = order[target[order] == label]
        ranks[members] = (torch.arange(len(members)) + 0.5) / len(members)
    chosen = order[ranks[order].sort(stable=True).indices[:count]]
    is_chosen = torch.zeros(len(target), dtype=torch.bool).index_fill_(0, chosen, 1)
    return chosen, order[~is_chosen[order]]


def _images(split: Split) -> StoredImages:
    assert isinstance(split.inputs, StoredImages)
    return split.inputs
