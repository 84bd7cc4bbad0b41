"""Random numbers that depend on the epoch, not on what was drawn before."""

import lightning as L
import torch

from kd_lightning.utils.hashing import mixed


class ReseedEachEpoch(L.Callback):
    """Seeds torch from (seed, epoch, rank) when an epoch starts.

    A run resumed at an epoch's end then drops out the same units as one never stopped.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.manual_seed(mixed(self.seed, trainer.current_epoch, trainer.global_rank))
