"""One class for each sample."""

from torch import Tensor

from kd_lightning.data.types import Batch
from kd_lightning.tasks.task import Task


class Classification(Task):
    """A class for each sample: logits are B×C, targets B, and rows are samples."""

    name = "classification"

    def rows(self, values: Tensor, target: Tensor) -> Tensor:
        return values

    def row_index(self, batch: Batch) -> Tensor | None:
        return batch.index
