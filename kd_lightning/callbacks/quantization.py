"""Callbacks that quantise the network of a run: while it is trained, or afterwards.

Both leave a best checkpoint whose figures are those of the quantised network.
"""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from kd_lightning.compress.deployed import Deployed
from kd_lightning.compress.fake_quantize import (
    activate,
    calibrate,
    fake_quantize,
    freeze_ranges,
    has_ranges,
    is_quantized,
)
from kd_lightning.data.types import ImageSpec
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import evaluating

log = logging.getLogger(__name__)


class _Quantizing(L.Callback):
    """Fake quantisation of a module's network.

    Args:
        bits: width of the integers.
    """

    def __init__(self, bits: int = 8) -> None:
        self.bits = bits

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Quantise the network, unless it was created so."""
        network = _network(pl_module)
        if not is_quantized(network):
            fake_quantize(network, self.bits)


class QuantizationAware(_Quantizing):
    """Train a network that is fake-quantised, so that its weights adapt to the rounding.

    The best epoch is chosen among those that are quantised.

    Args:
        bits: width of the integers, 2…8.
        start_epoch: number of epochs in floating point before.
        freeze: fraction of the quantised epochs after which the ranges of activations stay as they
            are.

    Source: Jacob et al. 2018, arXiv 1712.05877, §3.1: ranges are moving averages, and quantisation
    starts after the weights have settled.
    """

    def __init__(self, bits: int = 8, start_epoch: int = 0, freeze: float = 0.75) -> None:
        super().__init__(bits)
        if not 0 <= freeze <= 1:
            raise UserError(f"quantize.freeze must lie in 0…1, got {freeze}")
        if start_epoch < 0:
            raise UserError(f"quantize.start_epoch cannot be negative, got {start_epoch}")
        self.start_epoch, self.freeze = start_epoch, freeze
        self._freeze_step, self._is_frozen = 0.0, None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs = trainer.max_epochs or -1
        if getattr(trainer, "fast_dev_run", False):
            self.start_epoch = 0  # the only epoch tries what the later ones would do
        check_start(self.start_epoch, epochs)
        steps = float(trainer.estimated_stepping_batches)
        before = steps * self.start_epoch / epochs if epochs > 0 else 0.0
        self._freeze_step = before + (steps - before) * self.freeze
        # Here, too, because an epoch that is resumed in the middle has no start.
        activate(_network(pl_module), trainer.current_epoch >= self.start_epoch)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        activate(_network(pl_module), trainer.current_epoch >= self.start_epoch)
        if self.start_epoch and trainer.current_epoch == self.start_epoch:
            log.info("from this epoch on, the network is trained with %s bits", self.bits)
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
                    _forget(callback)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not has_ranges(_network(pl_module)):  # by max_steps, max_time, or early stopping
            raise UserError(
                f"training ended before quantize.start_epoch={self.start_epoch}, so nothing has "
                "been quantised: start earlier, or train for longer"
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        frozen = trainer.global_step >= self._freeze_step
        if frozen is not self._is_frozen:  # not in every step, which would walk through all layers
            freeze_ranges(_network(pl_module), frozen)
            self._is_frozen = frozen


def check_start(start_epoch: int, max_epochs: int) -> None:
    """Check that quantised training begins before the training ends.

    Raises:
        UserError: if it does not. A negative ``max_epochs`` means that there is no limit.
    """
    if 0 <= max_epochs <= start_epoch:
        raise UserError(
            f"quantize.start_epoch={start_epoch} leaves no epoch of trainer.max_epochs="
            f"{max_epochs} to train quantised"
        )


class PostTraining(_Quantizing):
    """Quantise the best epoch of a training in floating point, without further training.

    The ranges of activations are the smallest and largest values for training images without
    augmentation. The best checkpoint is replaced by the quantised network.

    Args:
        bits: width of the integers, 2…8.
        images: number of training images for calibration.
    """

    def __init__(self, bits: int = 8, images: int = 512) -> None:
        super().__init__(bits)
        self.images = images

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        activate(_network(pl_module), False)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        content: dict[str, Any] = {}
        if best:
            content = torch.load(best, map_location="cpu", weights_only=True)
            pl_module.load_state_dict(content["state_dict"])
        network, (spec, images) = _network(pl_module), _calibration(trainer, self.images)
        whole = Deployed(network, spec).to(pl_module.device)
        with evaluating(whole):
            calibrate(whole, images.to(pl_module.device))
        if best:
            content["state_dict"] = pl_module.state_dict()
            if trainer.is_global_zero:
                trainer.strategy.checkpoint_io.save_checkpoint(content, Path(best))
            trainer.strategy.barrier()


def _network(module: L.LightningModule) -> torch.nn.Module:
    network = getattr(module, "network", None)
    if not isinstance(network, torch.nn.Module):
        raise UserError(
            f"{type(module).__name__} has no `network` to quantise: call "
            "kd_lightning.compress.fake_quantize.fake_quantize on the network instead"
        )
    return network


def _calibration(trainer: L.Trainer, count: int) -> tuple[ImageSpec, torch.Tensor]:
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "calibration"):
        raise UserError(
            f"quantize=ptq calibrates on images without augmentation, which "
            f"{type(data).__name__} does not offer: see ImageDataModule.calibration"
        )
    return data.spec, data.calibration(count)


def _forget(best: ModelCheckpoint) -> None:
    """Let a callback choose the best of the epochs that follow."""
    best.best_k_models, best.best_model_score = {}, None
    best.best_model_path = best.kth_best_model_path = ""
