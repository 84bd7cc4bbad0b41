"""Effect of the temperature on the teacher's predictions and on the student's gradient."""

from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from kd_lightning.metrics.temperature import TemperatureMetric
from kd_lightning.modules import DistillationModule


class TemperatureCurves(L.Callback):
    """Add ``temperature_curves`` to the diagnostics of the best epoch, for plots.

    The curves are entropy, gradient norm and distance from the limit at 25 temperatures; see
    :class:`~kd_lightning.metrics.temperature.TemperatureMetric`. The callback is not enabled by
    default, because it evaluates the softmax at each temperature in float64.
    """

    shapes_result = False

    def __init__(self) -> None:
        self.metric: TemperatureMetric | None = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Not in the validation epochs of a training, whose weights are not the final ones.
        if trainer.state.fn != TrainerFn.VALIDATING or "teacher" not in outputs:
            return
        if self.metric is None:
            self.metric = TemperatureMetric().to(pl_module.device)
        if len(outputs["target"]):  # all ranks have equally many batches; the last may be empty
            self.metric.update(outputs["logits"], outputs["teacher"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.metric is not None and isinstance(pl_module, DistillationModule):
            pl_module.tables |= self.metric.compute()
            self.metric = None
