"""scikit-learn's bundled digits: real handwriting for a machine with no network.

1,797 grey images of 8×8 with 17 levels (UCI, Alpaydin and Kaynak 1998), resized to 28×28.
"""

from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from kd_lightning.data.batches import Split
from kd_lightning.data.memory import InMemoryDataModule


class DigitsDataModule(InMemoryDataModule):
    """The digits in their bundled order; the last 360 are the test set."""

    def load(self) -> tuple[Split, Split]:
        digits: Any = load_digits()
        small = torch.from_numpy(digits.images).unsqueeze(1) / 16
        images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
        everything = Split((images * 255).round().byte(), torch.from_numpy(digits.target).long())
        order = torch.arange(len(digits.target))
        return everything.take(order[:-360]), everything.take(order[-360:])
