"""Images that are streamed from shards, for sets beyond memory."""

from pathlib import Path
from typing import Any

from kd_lightning.data.batches import Split
from kd_lightning.data.photos import PhotoDataModule, Photos
from kd_lightning.data.shards import open_shards
from kd_lightning.data.stored import StoredImages


class StreamDataModule(PhotoDataModule):
    """Images of a folder that ``kd-data`` has packed.

    They are decoded at each read. An epoch reads a few shards at a time, in random order, and every
    image once. Only labels, checksums and orders are in memory, about 40 bytes an image.

    Args:
        path: the packed folder.
        num_workers: number of processes that read and decode.
        **settings: see :class:`~kd_lightning.data.photos.PhotoDataModule`.

    Raises:
        UserError: if a setting is out of range, or the folder is not such a folder.
    """

    def __init__(self, path: str, num_workers: int = 2, **settings: Any) -> None:
        super().__init__(num_workers=num_workers, **settings)
        self.path = Path(path)

    def find(self) -> Photos:
        return open_shards(self.path, self.squares)

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        super().setup(stage)
        # In the order of the shards: evaluations and the teacher cache read them one by one, and
        # neighbours in a shard are neighbours in the tables of the teacher's outputs.
        self.splits = {name: _in_order(split) for name, split in self.splits.items()}


def _in_order(split: Split) -> Split:
    assert isinstance(split.inputs, StoredImages)
    return split.take(split.inputs.rows.argsort())
