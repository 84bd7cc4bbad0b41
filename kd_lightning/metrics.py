"""What is measured: means over all samples of a split, and the terms of the loss by step."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy


class Evaluation(nn.Module):
    """Figures of one pass over a split; over all samples of all ranks under DDP.

    - ``accuracy``: share of samples whose top class is the label.
    - ``loss``: mean cross-entropy with the labels, in nats.
    - ``teacher_accuracy``: the teacher's accuracy on the same samples.
    - ``agreement``: share of samples on which student and teacher name the same class
      (top-1 agreement: Stanton et al. 2021, arXiv 2106.05945).

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
        self.loss = MeanMetric(nan_strategy=math.nan)  # by default it leaves NaN out

    def update(self, logits: Tensor, target: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Add a batch: logits B×C, target B, teacher_logits B×C."""
        if len(target) == 0:
            return  # a rank's share may end before the others'
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
        """The figures, gathered over the ranks; starts anew."""
        metrics = {"loss": self.loss, **self.shares}
        values = {name: metric.compute() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return values


class StepTerms:
    """Means of the terms of the training loss between two log entries.

    The terms stay on the device as a row a step, so that no step waits for the device.

    Raises:
        FloatingPointError: from :meth:`flush`, where a term is not finite; it names the
            first such step and its terms.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rows: list[Tensor] = []

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Keep one step's terms, each a scalar."""
        self.names = list(terms)
        self.rows.append(torch.stack([t.detach().float() for t in terms.values()]))

    def flush(self, last_step: int) -> dict[str, float]:
        """Mean of each term since the last call; ``last_step`` numbers the newest row."""
        if not self.rows:
            return {}
        table = torch.stack(self.rows).cpu()
        self.rows.clear()
        bad = (~table.isfinite().all(1)).nonzero()
        if len(bad):
            row = int(bad[0])
            pairs = zip(self.names, table[row].tolist(), strict=True)
            values = ", ".join(f"{name}={value:g}" for name, value in pairs)
            raise FloatingPointError(f"step {last_step - len(table) + 1 + row}: {values}")
        return dict(zip(self.names, table.mean(0).tolist(), strict=True))
