"""Figures of one pass over a split: accuracy, loss, agreement with the teacher.

N rows, B of them in a batch; C classes. A row is a sample, or a token of a token classifier.
All logarithms are natural. Every figure is declared in :mod:`kd_lightning.metrics.figures`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from kd_lightning.metrics.sums import Mean


class Evaluation(nn.Module):
    """``accuracy`` and ``loss``; with a teacher also ``teacher_accuracy`` and ``agreement``.

    Over all rows of all ranks under DDP. It runs after every epoch, so it holds only what
    curves over epochs need; :class:`~kd_lightning.metrics.diagnostics.Diagnostics` runs once.

    Args:
        num_classes: C.
        with_teacher: whether a teacher's logits will be given.
    """

    def __init__(self, num_classes: int, with_teacher: bool) -> None:
        super().__init__()
        names = ["accuracy", *(["teacher_accuracy", "agreement"] if with_teacher else [])]
        self.shares = nn.ModuleDict(
            {name: MulticlassAccuracy(num_classes, average="micro") for name in names}
        )
        self.loss = Mean(nan_strategy=math.nan)  # by default it skips NaN, and hides a divergence

    def update(self, logits: Tensor, target: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Add a batch: logits B×C, target B, teacher_logits B×C."""
        if len(target) == 0:
            return  # the ranks run equally many batches, of which the last may be empty
        self.loss.update(F.cross_entropy(logits, target), weight=len(target))
        self._count("accuracy", logits, target)
        if teacher_logits is not None:
            self._count("teacher_accuracy", teacher_logits, target)
            self._count("agreement", logits, teacher_logits.argmax(1))

    def _count(self, name: str, logits: Tensor, target: Tensor) -> None:
        metric = self.shares[name]
        assert isinstance(metric, MulticlassAccuracy)
        metric.update(logits, target)

    def result(self) -> dict[str, Tensor]:
        """The figures by name, gathered over the ranks; the state is reset."""
        metrics = {**self.shares, "loss": self.loss}
        values = {name: metric.compute() for name, metric in metrics.items()}
        with torch.inference_mode(False):  # see BaseModule._make_metrics
            for metric in metrics.values():
                metric.reset()
        return values
