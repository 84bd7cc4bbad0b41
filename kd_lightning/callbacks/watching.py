"""Lightning callbacks that observe a run without changing its result.

The attribute ``shapes_result`` of a callback is False if weights and figures do not depend on
it. Such callbacks are left out of a teacher's key and of the settings in ``run.json``. Without
the attribute, a callback is assumed to change the result.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
)

from kd_lightning.metrics.figures import show

log = logging.getLogger(__name__)


# Subclasses, because only a class attribute can be read from a configuration without creating
# the callback.
class LastCheckpoint(ModelCheckpoint):
    """Save the latest epoch, for resuming; figures come from the best checkpoint."""

    shapes_result = False


class LearningRate(LearningRateMonitor):
    """Log the learning rate, if there is a logger."""

    shapes_result = False

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.loggers:
            super().on_train_start(trainer, *args, **kwargs)


class EpochLog(Callback):
    """Log a line for each epoch where there is no progress bar, as when output is piped."""

    shapes_result = False

    def __init__(self) -> None:
        self.started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()  # an epoch that is resumed in the middle has no start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.progress_bar_callback is not None:
            return
        seconds = time.perf_counter() - self.started
        log_epoch(trainer.current_epoch, trainer.max_epochs, trainer.callback_metrics, seconds)


def log_epoch(epoch: int, epochs: int | None, logged: Mapping[str, Any], seconds: float) -> None:
    """Log a line for an epoch.

    Args:
        epoch: its number, from 0.
        epochs: number of all epochs; None or −1 if there is no limit.
        logged: figures by name.
        seconds: its duration.
    """
    most = f" of {epochs}" if (epochs or -1) > 0 else ""
    names = ("train/loss", "val/loss", "val/accuracy")
    found = [f"{name} {show(name, float(logged[name]))}" for name in names if name in logged]
    log.info("epoch %d%s: %s (%.1f s)", epoch + 1, most, ", ".join(found), seconds)


class ProgressBar(TQDMProgressBar):
    """Show progress in a terminal."""

    shapes_result = False
