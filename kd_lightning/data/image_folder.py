"""Folders of photos: a folder per class, images of any size."""

import logging
from pathlib import Path
from typing import Any

import torch

from kd_lightning.data.decoded import decoded, describe_unreadable
from kd_lightning.data.listing import PARTS, list_folder
from kd_lightning.data.photos import PhotoDataModule, Photos
from kd_lightning.utils.errors import UserError

log = logging.getLogger(__name__)


class ImageFolderDataModule(PhotoDataModule):
    """Images in ``path/train/CLASS``, and optionally ``path/val`` and ``path/test``.

    Images that lie in ``path/CLASS`` are all training images. They are decoded once, see
    :mod:`kd_lightning.data.decoded`.

    Args:
        path: the folder.
        unlabelled: folder of more training images, without labels, in any depth.
        decoded: folder of the decoded images.
        max_bytes: limit on the decoded images; above it images are decoded while training.
        num_workers: number of processes that decode while training.
        on_error: ``skip`` leaves unreadable images out and names them, ``raise`` refuses them.
        **settings: see :class:`~kd_lightning.data.photos.PhotoDataModule`.

    Raises:
        UserError: if a setting is out of range, or the folder does not have that structure.
    """

    def __init__(
        self,
        path: str,
        unlabelled: str | None = None,
        decoded: str = "cache/images",
        max_bytes: float = 2e10,
        num_workers: int = 2,
        on_error: str = "skip",
        **settings: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **settings)
        if on_error not in ("skip", "raise"):
            raise UserError(f"data.on_error must be skip or raise, got {on_error}")
        if not max_bytes >= 0:
            raise UserError(f"data.max_bytes cannot be negative, got {max_bytes}")
        self.path, self.unlabelled = Path(path), Path(unlabelled) if unlabelled else None
        self.decoded, self.max_bytes, self.on_error = Path(decoded), max_bytes, on_error

    def find(self) -> Photos:
        folder = list_folder(self.path, self.unlabelled)
        found = decoded(self.decoded, folder.listing, self.squares, self.max_bytes)
        unreadable = describe_unreadable(folder.listing, found.is_readable)
        if unreadable and self.on_error == "raise":
            raise UserError(f"{unreadable}; delete them, or set data.on_error=skip")
        if unreadable:
            log.warning("%s; they are left out", unreadable)
        readable = found.is_readable.nonzero().flatten()
        splits = [folder.split[k] for k in readable.tolist()]
        rows = {
            name: torch.tensor([i for i, split in enumerate(splits) if split == name]).long()
            for name in PARTS
        }
        return Photos(folder.class_names, found.images, folder.target[readable], rows)
