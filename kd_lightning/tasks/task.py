"""Base class of tasks, which own everything that depends on what is predicted.

Modules, objective, losses, cache and report work on rows: N predictions of one class out of
C. A task converts a network's outputs into these rows.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kd_lightning.data.types import Batch, Spec
from kd_lightning.metrics.diagnostics import Diagnostics
from kd_lightning.metrics.evaluation import Evaluation
from kd_lightning.nets.preprocessing import connect
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.partials import built

NetFactory = Callable[..., nn.Module]


class Task:
    """Conversion of outputs to rows, and the figures measured on them.

    A subclass implements :meth:`rows` and :meth:`row_index`, and overrides :meth:`evaluation`
    and :meth:`diagnostics` to measure other figures.

    Args:
        spec: specification of the data. Without one, networks cannot be given as factories,
            and objects that depend on the number of classes are created at the first batch.
    """

    name: str  # recorded in checkpoints and run.json

    def __init__(self, spec: Spec | None = None) -> None:
        self.spec = spec

    def build(self, network: nn.Module | NetFactory) -> nn.Module:
        """Return the network, created by calling ``network`` if it is a factory.

        Raises:
            UserError: if a factory is given without a specification of the data, or rejects
                its settings.
        """
        if isinstance(network, nn.Module):
            return connect(network, self.spec) if self.spec is not None else network
        if self.spec is None:
            raise UserError(
                "a network must be a torch.nn.Module, or a factory with a specification of the "
                f"data, as in task={type(self).__name__}(spec); got {network!r}"
            )
        # Shapes and classes come from the data, so no configuration has to repeat them.
        return connect(built(network, *self.spec.network_arguments), self.spec)

    def example(self) -> Batch | None:
        """Return a small batch of any content for dry runs; None without a specification."""
        return self.spec.example() if self.spec is not None else None

    def rows(self, values: Tensor, target: Tensor) -> Tensor:
        """Select the rows of a batch that have a target.

        Args:
            values: one entry per prediction, B×… or B×L×…: logits, a layer's output, or
                targets. A layer without an entry per prediction, such as a pooled one, is
                returned unchanged.
            target: targets of the batch, B or B×L.

        Returns:
            The rows, N×….
        """
        # Padding and prompts are removed here, once, so no loss or metric needs a mask.
        raise NotImplementedError

    def row_index(self, batch: Batch) -> Tensor | None:
        """Return each row's position in the training set, N; None for a batch without index."""
        raise NotImplementedError

    def labels(self, target: Tensor) -> Tensor:
        """Return the class of each training row, N, from the targets of all samples."""
        return self.rows(target, target)

    def evaluation(self, num_classes: int, with_teacher: bool) -> Evaluation:
        """Create the metrics computed after every epoch."""
        return Evaluation(num_classes, with_teacher)

    def diagnostics(self, num_classes: int, with_teacher: bool, with_tables: bool) -> Diagnostics:
        """Create the metrics computed once, for the best epoch; tables for plots are optional."""
        return Diagnostics(num_classes, with_teacher, with_tables)

    def plain(self) -> dict[str, Any]:
        """Return the task's entries in a checkpoint."""
        # Plain values only: checkpoints are read with weights_only=True.
        spec = {"spec": self.spec.plain()} if self.spec is not None else {}
        return {"task": self.name, **spec}
