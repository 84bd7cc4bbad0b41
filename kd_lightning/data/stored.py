"""Images on disk that are read a batch at a time."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

Read = Callable[[Tensor], Tensor]  # positions, B, to images, B×C×H×W uint8


class StoredImages:
    """Images of a file or folder, N×C×H×W, indexed like a tensor.

    Args:
        read: reads the images at positions of the file or folder.
        rows: positions of these images, N, int64.
        image_shape: (C, H, W).
        digest: hash of all images that ``read`` can return.
        is_slow: whether reading takes long enough to be left to worker processes.
        shards: first position of each shard, ascending, if only neighbours are read quickly.
    """

    device = torch.device("cpu")  # where batches are read to

    def __init__(
        self,
        read: Read,
        rows: Tensor,
        image_shape: tuple[int, int, int],
        digest: str,
        is_slow: bool = False,
        shards: Tensor | None = None,
    ) -> None:
        self.read, self.rows, self.image_shape = read, rows, image_shape
        self.all_digest, self.is_slow, self.shards = digest, is_slow, shards

    @property
    def shape(self) -> tuple[int, ...]:
        """N, C, H and W."""
        return (len(self.rows), *self.image_shape)

    @property
    def digest(self) -> str:
        """Hash of these images and their order."""
        rows = self.rows.contiguous().numpy().data
        return hashlib.blake2b(self.all_digest.encode() + rows, digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Read the images at an index, B, as B×C×H×W uint8."""
        return self.read(self.rows[index.cpu()])

    def take(self, index: Tensor) -> "StoredImages":
        """Return the images at an index, or those that a mask selects, without reading them."""
        return self._with(self.rows[index])

    def __add__(self, other: "StoredImages") -> "StoredImages":
        """Return these images followed by others of the same file or folder."""
        assert self.all_digest == other.all_digest
        return self._with(torch.cat([self.rows, other.rows]))

    @property
    def shard(self) -> Tensor | None:
        """Shard of each image, N; None if images are not stored in shards."""
        if self.shards is None:
            return None
        return torch.searchsorted(self.shards, self.rows, right=True) - 1

    def to(self, device: torch.device) -> Tensor:
        """Read all images into a device's memory."""
        return self[torch.arange(len(self))].to(device)

    def _with(self, rows: Tensor) -> "StoredImages":
        shape, digest = self.image_shape, self.all_digest
        return StoredImages(self.read, rows, shape, digest, self.is_slow, self.shards)
