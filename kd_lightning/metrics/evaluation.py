"""Figures computed after every epoch: accuracy, loss, and agreement with the teacher.

Shapes: N rows, B per batch, and C classes. A row is a sample, or a token of a token
classifier. Logarithms are natural. All figures are declared in
:mod:`kd_lightning.metrics.figures`.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from kd_lightning.metrics.sums import Mean


class Evaluation(nn.Module):
    """``accuracy`` and ``loss``; with a teacher also ``teacher_accuracy`` and ``agreement``.

    The figures are computed over all rows of all ranks. They are those that are plotted over
    epochs; :class:`~kd_lightning.metrics.diagnostics.Diagnostics` computes the others once.

    Args:
        num_classes: number of classes, C.
        with_teacher: whether :meth:`update` receives a teacher's logits.
    """

    def __init__(self, num_classes: int, with_teacher: bool) -> None:
        super().__init__()
        names = ["accuracy", *(["teacher_accuracy", "agreement"] if with_teacher else [])]
        self.shares = nn.ModuleDict(
            {name: MulticlassAccuracy(num_classes, average="micro") for name in names}
        )
        self.loss = Mean(nan_strategy=math.nan)  # skipping NaN, the default, would hide divergence

    def update(self, logits: Tensor, target: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Add a batch: logits B×C, target B, teacher_logits B×C."""
        if len(target) == 0:
            return  # all ranks have equally many batches, so the last may be empty
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
        """Return the figures by name, computed over all ranks, and reset the state."""
        metrics = {**self.shares, "loss": self.loss}
        values = {name: metric.compute() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return values


def is_near_chance(accuracy: float, classes: int) -> bool:
    """Return whether an accuracy is less than a tenth of the way from chance to 1.

    >>> is_near_chance(0.54, 2), is_near_chance(0.2, 10)
    (True, False)
    """
    return accuracy < 1 / classes + (1 - 1 / classes) / 10
