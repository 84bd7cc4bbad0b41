"""Changes to training samples, for experiments: fewer of them, wrong labels, hidden labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kd_lightning.data.batches import Split
from kd_lightning.data.types import UNLABELLED
from kd_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Changes:
    """Changes to the training samples of a data set; validation and test samples stay.

    Attributes:
        label_noise: fraction of labels replaced by another class.
        train_fraction: fraction of the samples to keep.
        exclude_classes: classes to remove.
        labelled_fraction: fraction of the samples that keep their labels.

    Raises:
        UserError: if a fraction is out of range.
    """

    label_noise: float = 0.0
    train_fraction: float = 1.0
    exclude_classes: Sequence[int] = ()
    labelled_fraction: float = 1.0

    def __post_init__(self) -> None:
        for name in ("label_noise", "train_fraction", "labelled_fraction"):
            value = getattr(self, name)
            # No samples are left of a train_fraction of 0.
            if not 0 <= value <= 1 or (value == 0 and name == "train_fraction"):
                raise UserError(f"data.{name} must lie in 0…1, got {value}")

    def apply(self, train: Split, num_classes: int, generator: torch.Generator) -> Split:
        """Return the changed samples.

        Args:
            train: the samples, in random order.
            num_classes: number of classes.
            generator: of the random labels.

        Raises:
            UserError: if a class does not exist, or no samples are left.
        """
        wrong = set(self.exclude_classes) - set(range(num_classes))
        if wrong:
            raise UserError(
                f"data.exclude_classes: no class {sorted(wrong)} in 0…{num_classes - 1}"
            )
        if self.exclude_classes:
            excluded = torch.tensor(list(self.exclude_classes))
            train = train.take(~torch.isin(train.target, excluded))
        kept = round(len(train.target) * self.train_fraction)
        if not kept:
            raise UserError(
                "no training samples are left: see data.train_fraction, exclude_classes"
            )
        train = train.take(torch.arange(kept))
        noisy = torch.randperm(kept, generator=generator)[: round(kept * self.label_noise)]
        # A shift from 1 on: a replaced label always differs from the true one.
        shift = torch.randint(1, num_classes, (len(noisy),), generator=generator)
        target = train.target.clone()
        target[noisy] = (target[noisy] + shift) % num_classes
        target[round(kept * self.labelled_fraction) :] = UNLABELLED
        return train._replace(target=target)
