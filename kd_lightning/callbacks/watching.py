"""Lightning callbacks that observe a run without changing its result.

The attribute ``shapes_result`` of a callback is False if weights and figures do not depend on
it. Such callbacks are left out of a teacher's key and of the settings in ``run.json``. Without
the attribute, a callback is assumed to change the result.
"""

from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar


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


class ProgressBar(TQDMProgressBar):
    """Show progress in a terminal."""

    shapes_result = False
