"""Random seeds that depend on the epoch instead of on earlier draws."""

import lightning as L
import torch

from kd_lightning.utils.hashing import mixed


class ReseedEachEpoch(L.Callback):
    """Seed torch from (seed, epoch, rank) at the start of each epoch.

    A run that is resumed at the end of an epoch then applies the same dropout masks as an
    uninterrupted one.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # For an epoch that is resumed in the middle, which has no start.
        place = (trainer.current_epoch, trainer.global_rank, trainer.global_step)
        torch.manual_seed(mixed(self.seed, *place))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Instead of storing generator states in the checkpoint, which would be needed for every
        # rank and device. The rank is mixed in so that DDP ranks use different masks.
        torch.manual_seed(mixed(self.seed, trainer.current_epoch, trainer.global_rank))
