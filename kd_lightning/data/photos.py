"""Base class of datamodules of photos: named classes, and splits that may be missing."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd_lightning.data.batches import Split
from kd_lightning.data.decoded import Squares
from kd_lightning.data.images import ImageDataModule
from kd_lightning.data.stored import StoredImages
from kd_lightning.utils.errors import UserError


class Photos(NamedTuple):
    """Photos as they were found, before missing splits are taken from the training images.

    Attributes:
        class_names: name of each class.
        images: all of them.
        target: class of each image, N; −100 for unlabelled ones.
        rows: positions of the images of ``train``, ``val``, ``test`` and ``unlabelled``; empty
            where there are none.
    """

    class_names: tuple[str, ...]
    images: StoredImages
    target: Tensor
    rows: dict[str, Tensor]

    def part(self, split: str) -> Split:
        """Return the images of a split."""
        return Split(self.images, self.target).take(self.rows[split])


class PhotoDataModule(ImageDataModule):
    """Photos, cut to squares of ``resize`` pixels.

    Networks see ``size`` pixels of them: a random crop with ``augment=photo``, else the centre. A
    missing split is taken from the training images, stratified by class. A subclass implements
    :meth:`find`.

    Args:
        size: side of the images that networks see, in pixels.
        resize: side of the squares, at least ``size``; 8/7 of it by default, as 256 for 224.
        channels: 3 for colour, 1 for grey; images of the other kind are converted.
        test_size: number of test images split off the training images where there are none, or a
            fraction of them if below 1.
        **settings: see :class:`~kd_lightning.data.images.ImageDataModule`.

    Raises:
        UserError: if a setting is out of range.
    """

    def __init__(
        self,
        size: int = 224,
        resize: int | None = None,
        channels: int = 3,
        test_size: int | float = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        stored = resize if resize is not None else round(size * 8 / 7)
        if size < 1 or not size <= stored <= 2 * size:
            # Larger ones would show networks a small part of each image, or alias.
            raise UserError(
                f"data.resize must lie between data.size and twice it, got {stored} for {size}"
            )
        if channels not in (1, 3):
            raise UserError(f"data.channels must be 1 or 3, got {channels}")
        if not test_size > 0:
            raise UserError(f"data.test_size must be positive, got {test_size}")
        self.size, self.squares, self.test_size = size, Squares(stored, channels), test_size
        self._others: StoredImages | None = None
        self._given_val = 0  # number of given validation images, the last ones of load()

    def find(self) -> Photos:
        """Return the photos.

        Raises:
            UserError: if they cannot be read.
        """
        raise NotImplementedError

    def load(self) -> tuple[Split, Split]:
        photos = self.find()
        self.class_names = photos.class_names
        train, val, test = (photos.part(split) for split in ("train", "val", "test"))
        self._check_classes(train)
        others = _images(photos.part("unlabelled"))
        self._others = others if len(others) else None
        if not len(test.target):
            # A generator of its own: the validation split does not depend on a test folder.
            generator = torch.Generator().manual_seed(self.split_seed)
            cut, rest = stratified(train.target, self.test_size, generator, "test")
            train, test = train.take(rest), train.take(cut)
        self._given_val = len(val.target)
        return Split(_images(train) + _images(val), torch.cat([train.target, val.target])), test

    def load_unlabelled(self) -> StoredImages | None:
        return self._others

    def _check_classes(self, train: Split) -> None:
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
