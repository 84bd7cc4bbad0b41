"""MNIST and Fashion-MNIST: 60,000 + 10,000 grey images of 28×28, read by torchvision."""

from pathlib import Path

import torch
from torchvision.datasets import MNIST, FashionMNIST

from kd_lightning.data.batches import Split
from kd_lightning.data.published import PublishedDataModule
from kd_lightning.utils.errors import UserError


class MNISTDataModule(PublishedDataModule):
    """Handwritten digits (LeCun, Cortes, Burges 1998), read from ``root/MNIST/raw``.

    Arguments and errors are those of
    :class:`~kd_lightning.data.published.PublishedDataModule`.
    """

    source: type[MNIST] = MNIST

    def load(self) -> tuple[Split, Split]:
        train, test = self._read(train=True), self._read(train=False)
        # torchvision verifies checksums only when it downloads, so files that were copied by
        # hand can come from two different data sets.
        known = set(train.target.unique().tolist())
        if train.inputs.shape[1:] != test.inputs.shape[1:] or set(test.target.tolist()) - known:
            raise UserError(
                f"the training and test files in {self.root / self.source.__name__ / 'raw'} "
                "belong to different data sets: delete them to download them again"
            )
        return train, test

    def is_there(self) -> bool:
        raw = self.root / self.source.__name__ / "raw"
        # unpacked files alone count: from packed ones torchvision still has to write them
        return all((raw / Path(url).stem).is_file() for url, _ in self.source.resources)

    def _read(self, train: bool) -> Split:
        folder = self.root / self.source.__name__ / "raw"
        try:
            data = self.source(str(self.root), train=train)
        except Exception as error:  # damage ends in an AssertionError, IndexError or struct error
            raise UserError(
                f"the idx files in {folder} are damaged or of another kind "
                f"({error or 'truncated'}): delete them to download them again, or point "
                "data.root= to a good copy"
            ) from error
        shape, labels = tuple(data.data.shape), data.targets
        if len(shape) != 3 or len(labels) != shape[0] or data.data.dtype != torch.uint8:
            raise UserError(
                f"the idx files in {folder} do not match: images have shape {shape}, labels "
                f"{tuple(labels.shape)}; delete them to download them again"
            )
        return Split(data.data.unsqueeze(1), labels.long())


class FashionMNISTDataModule(MNISTDataModule):
    """Images of clothing in MNIST's format (Xiao, Rasul, Vollgraf 2017)."""

    source = FashionMNIST
