"""Published data sets, downloaded by torchvision where their files are missing."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

from filelock import FileLock

from kd_lightning.data.images import ImageDataModule
from kd_lightning.utils.errors import UserError


class PublishedDataModule(ImageDataModule):
    """Base class of data sets that torchvision can download.

    Subclasses define ``source``, torchvision's class, and :meth:`is_there`.

    Args:
        root: folder of the files; missing files are downloaded into it.
        **settings: see :class:`~kd_lightning.data.images.ImageDataModule`.

    Raises:
        UserError: if the files are missing and cannot be downloaded, or are damaged.
    """

    source: type[Any]

    def __init__(self, root: str = "data", **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root)

    def is_there(self) -> bool:
        """Return whether all files exist, so that no download is needed."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Download missing files, one process at a time.

        Raises:
            UserError: if the download fails.
        """
        # Before the folder and the lock: complete data may lie on a read-only disk.
        if self.is_there():
            return
        name = self.source.__name__
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # Lightning runs this once per machine, but sweep jobs start side by side and would
            # unpack into each other's files. A process that has waited finds them complete.
            with FileLock(self.root / f"{name}.lock"):
                if not self.is_there():
                    self.source(str(self.root), download=True)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"{name} is not in {self.root.resolve()} and could not be downloaded: use "
                "data=digits (needs no network), or point data.root= (or KD_DATA_DIR) to a copy"
            ) from error
