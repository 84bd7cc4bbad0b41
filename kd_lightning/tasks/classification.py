"""Classification of whole samples."""

from torch import Tensor

from kd_lightning.data.types import Batch
from kd_lightning.tasks.task import Task


class Classification(Task):
    """One class per sample: logits are B×C, targets are B, and each row is a sample."""

    name = "classification"

    def rows(self, values: Tensor, target: Tensor) -> Tensor:
        return values

    def row_index(self, batch: Batch) -> Tensor | None:
        return batch.index
