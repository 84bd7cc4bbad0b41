"""Errors on classes missing from the training data, before and after a bias correction."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors


class ClassBias(L.Callback):
    """Count errors with one bias added to the logits of classes missing from training.

    A student distilled without any 3 learns from the teacher what a 3 looks like, but also
    that 3 never occurs, so its bias for class 3 is far too low. The correction is the bias with
    the fewest errors on validation data; errors on test data are then counted with it. For
    both splits the callback logs:

    - ``errors``: number of wrong predictions without correction.
    - ``errors_corrected``: number of wrong predictions with the bias.
    - ``errors_unseen``, ``errors_unseen_corrected``: the same among the unseen classes.
    - ``accuracy_corrected``: share of correct predictions with the bias.

    It also logs ``val/bias``, the bias, which is 0 if no class is unseen.

    Args:
        classes: the classes missing from the training data.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, §3. The paper chose the bias on the
    test data; lowering its biases of 7 and 8 is equivalent to raising all others.
    """

    def __init__(self, classes: Sequence[int] = ()) -> None:
        self.classes = list(classes)
        self.bias = 0.0
        self._rows: list[Tensor] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(outputs)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows = self._gather()
        # Chosen again in every epoch; the last validation, of the best epoch, precedes the test.
        self.bias = best_bias(rows) if self.classes else 0.0
        pl_module.log("val/bias", self.bias, sync_dist=True)
        self._log(pl_module, "val", rows)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(pl_module, "test", self._gather())

    def _add(self, outputs: Any) -> None:
        # All rows are kept, at 16 bytes each: the best bias needs their sorted distances, which
        # no running sum provides.
        self._rows.append(compare(outputs["logits"], outputs["target"], self.classes))

    def _gather(self) -> Tensor:
        """Return the rows of all processes, N×4, and reset the state."""
        rows = torch.cat(self._rows)
        self._rows.clear()
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        return torch.cat(gather_all_tensors(rows)) if several else rows

    def _log(self, module: L.LightningModule, split: str, rows: Tensor) -> None:
        unseen = rows[:, 3] == 1
        values = {"accuracy_corrected": right(rows, self.bias).float().mean()}
        for name, bias in (("", 0.0), ("_corrected", self.bias)):
            wrong = ~right(rows, bias)
            values[f"errors{name}"] = wrong.sum().float()
            values[f"errors_unseen{name}"] = (wrong & unseen).sum().float()
        # The values are the same on all ranks; sync_dist only silences Lightning's warning.
        module.log_dict({f"{split}/{k}": v for k, v in values.items()}, sync_dist=True)


def compare(logits: Tensor, target: Tensor, classes: Sequence[int]) -> Tensor:
    """Reduce logits to what determines the predictions under any bias of some classes.

    Args:
        logits: logits, N×C.
        target: classes, N.
        classes: the classes to which the bias is added.

    Returns:
        N×4: the largest logit of the other classes minus the largest of these; whether the
        best of these classes is the label; whether the best of the others is the label;
        whether the label is one of these classes.
    """
    # A common bias does not change the order within the two sets, so only their best matter.
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    chosen[list(classes)] = True
    ours, best = logits.float().masked_fill(~chosen, -torch.inf).max(1)
    others, best_other = logits.float().masked_fill(chosen, -torch.inf).max(1)
    columns = (others - ours, best == target, best_other == target, chosen[target])
    return torch.stack([column.float() for column in columns], dim=1)


def right(rows: Tensor, bias: float) -> Tensor:
    """Return whether each prediction is right with a bias added, N."""
    behind, ours, others, _ = rows.unbind(1)
    return torch.where(behind < bias, ours, others) == 1


def best_bias(rows: Tensor) -> float:
    """Return the bias with the most right predictions.

    A prediction changes when the bias exceeds the distance in the first column, so all biases
    between two neighbouring distances are equivalent. The search over these intervals is
    exact. Of several best intervals the middle one is chosen.

    Args:
        rows: output of :func:`compare`, N×4.
    """
    behind, order = rows[:, 0].double().sort()
    gained = (rows[order, 1] - rows[order, 2]).cumsum(0)
    gained = torch.cat([gained.new_zeros(1), gained])  # after the first k predictions have changed
    edges = torch.cat([behind[:1] - 1, behind, behind[-1:] + 1])
    best = (gained == gained.max()).nonzero().flatten()
    k = int(best[len(best) // 2])
    return ((edges[k] + edges[k + 1]) / 2).item()
