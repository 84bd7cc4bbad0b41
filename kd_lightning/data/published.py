"""Published data sets: files in a folder, downloaded through torchvision where they are missing."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

from filelock import FileLock

from kd_lightning.data.memory import InMemoryDataModule
from kd_lightning.utils.errors import UserError


class PublishedDataModule(InMemoryDataModule):
    """A data set of torchvision's, as what a class says by ``source`` and :meth:`is_there`.

    Args:
        root: folder that holds the files; what is missing is downloaded into it.
        **settings: see :class:`~kd_lightning.data.memory.InMemoryDataModule`.

    Raises:
        UserError: if the files are missing and cannot be downloaded, or are damaged.
    """

    source: type[Any]

    def __init__(self, root: str = "data", **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root)

    def is_there(self) -> bool:
        """Whether there is nothing to download."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Download what is missing, one process at a time."""
        if self.is_there():
            return
        name = self.source.__name__
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f"{name}.lock"):
                if not self.is_there():
                    self.source(str(self.root), download=True)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"{name} is not in {self.root.resolve()} and could not be downloaded: use "
                "data=digits (needs no network), or point data.root= (or KD_DATA_DIR) to a copy"
            ) from error
