"""The interface of a task: everything that depends on what is predicted.

Modules, objective, losses, cache and report know rows only: N predictions, each of one class
out of C. A task turns what a network returns into those rows.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kd_lightning.data.types import Batch, Spec
from kd_lightning.metrics.diagnostics import Diagnostics
from kd_lightning.metrics.evaluation import Evaluation
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.partials import built

NetFactory = Callable[..., nn.Module]


class Task:
    """What the networks predict.

    A subclass overrides :meth:`rows` and :meth:`row_index` where a network returns more than
    one prediction a sample, and :meth:`evaluation` and :meth:`diagnostics` where other figures
    are measured.

    Args:
        spec: what is known of the data. Without it networks must be given ready-made, and
            what depends on the number of classes is made when the first batch comes.
    """

    name: str

    def __init__(self, spec: Spec | None = None) -> None:
        self.spec = spec

    def build(self, network: nn.Module | NetFactory) -> nn.Module:
        """A network as given, or made for the data by a factory.

        Raises:
            UserError: if a factory is given and nothing is known of the data, or its settings
                do not fit the data.
        """
        if isinstance(network, nn.Module):
            return network
        if self.spec is None:
            raise UserError(
                "a network must be a torch.nn.Module, or a factory together with a task that "
                f"knows its data: task={type(self).__name__}(spec); got {network!r}"
            )
        return built(network, *self.spec.network_arguments)

    def example(self) -> Batch | None:
        """A small batch of any content, for dry runs; None where nothing is known of the data."""
        return self.spec.example() if self.spec is not None else None

    def rows(self, values: Tensor, target: Tensor) -> Tensor:
        """The rows of a batch that are asked for.

        Args:
            values: one entry a prediction, B×… or B×L×…: logits, a layer's output, targets. A
                layer without an entry for each prediction, such as a pooled one, is returned
                as it is.
            target: of the batch, B or B×L.

        Returns:
            N×….
        """
        raise NotImplementedError

    def row_index(self, batch: Batch) -> Tensor | None:
        """Position of each row in the training set, N; None where a batch does not tell."""
        raise NotImplementedError

    def labels(self, target: Tensor) -> Tensor:
        """The class of each row of the training set, from the targets of all samples."""
        return self.rows(target, target)

    def evaluation(self, num_classes: int, with_teacher: bool) -> Evaluation:
        """What is measured after every epoch."""
        return Evaluation(num_classes, with_teacher)

    def diagnostics(self, num_classes: int, with_teacher: bool, with_tables: bool) -> Diagnostics:
        """What is measured once, of the best epoch; tables for plots only where they are wanted."""
        return Diagnostics(num_classes, with_teacher, with_tables)

    def plain(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain values only."""
        spec = {"spec": self.spec.plain()} if self.spec is not None else {}
        return {"task": self.name, **spec}
