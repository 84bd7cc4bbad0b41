"""scikit-learn's bundled digits: handwriting that needs no download.

1,797 grey images of 8×8 with 17 levels (UCI, Alpaydin and Kaynak 1998), resized to 28×28.
"""

from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from kd_lightning.data.batches import Split
from kd_lightning.data.images import ImageDataModule


class DigitsDataModule(ImageDataModule):
    """The digits, resized to 28×28; the last 360 are the test set.

    Arguments are those of :class:`~kd_lightning.data.images.ImageDataModule`.
    """

    remark = "those for testing are by other writers, and harder"

    def load(self) -> tuple[Split, Split]:
        digits: Any = load_digits()
        small = torch.from_numpy(digits.images).unsqueeze(1) / 16
        # MNIST's size, so that the same networks and settings serve both data sets
        images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
        everything = Split((images * 255).round().byte(), torch.from_numpy(digits.target).long())
        # Not shuffled: neighbouring samples come from the same writers, so the last fifth is
        # a test on other people's handwriting.
        order = torch.arange(len(digits.target))
        return everything.take(order[:-360]), everything.take(order[-360:])
