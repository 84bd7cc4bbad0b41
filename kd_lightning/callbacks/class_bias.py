"""Errors on classes that the training data lack, before and after one correction.

N rows, C classes.
"""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors


class ClassBias(L.Callback):
    """Counts errors with one bias added to the logits of classes that training lacked.

    A student distilled without any 3 learns from the teacher what a 3 looks like, but also
    that there are none: its bias for class 3 is far too low. The bias that corrects this is
    the one with the fewest errors on validation data; test errors are then counted with it.
    Logged for both splits:

    - ``errors``: wrong predictions of the student as it is.
    - ``errors_corrected``: wrong predictions with the bias added.
    - ``errors_unseen``, ``errors_unseen_corrected``: those among the unseen classes.
    - ``accuracy_corrected``: share of right predictions with the bias added.

    And ``val/bias``: the bias itself; 0 where no class is unseen.

    Args:
        classes: the classes that the training data lack.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, §3. There the bias was chosen on the
    test data; lowering the biases of 7 and 8 is the same as raising all others.
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
        self.bias = best_bias(rows) if self.classes else 0.0
        pl_module.log("val/bias", self.bias, sync_dist=True)
        self._log(pl_module, "val", rows)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(pl_module, "test", self._gather())

    def _add(self, outputs: Any) -> None:
        # A sorted list of N distances takes 16 bytes a row; no running sum could find the bias.
        self._rows.append(compare(outputs["logits"], outputs["target"], self.classes))

    def _gather(self) -> Tensor:
        """The rows of all processes; the state is reset."""
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
        # Gathered over the processes already; sync_dist only tells Lightning so.
        module.log_dict({f"{split}/{k}": v for k, v in values.items()}, sync_dist=True)


def compare(logits: Tensor, target: Tensor, classes: Sequence[int]) -> Tensor:
    """What is needed to tell each prediction under any bias of some classes, N×4.

    The columns: by how much the best of these classes trails the best of the others; whether
    that class is the label; whether the best of the others is; whether the label is one of
    these classes.

    Args:
        logits: N×C.
        target: N.
        classes: those that the bias is added to.
    """
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    chosen[list(classes)] = True
    ours, best = logits.float().masked_fill(~chosen, -torch.inf).max(1)
    others, best_other = logits.float().masked_fill(chosen, -torch.inf).max(1)
    columns = (others - ours, best == target, best_other == target, chosen[target])
    return torch.stack([column.float() for column in columns], dim=1)


def right(rows: Tensor, bias: float) -> Tensor:
    """Whether each prediction is right with a bias added, N."""
    behind, ours, others, _ = rows.unbind(1)
    return torch.where(behind < bias, ours, others) == 1


def best_bias(rows: Tensor) -> float:
    """The bias with the most right predictions, found exactly rather than on a grid.

    A prediction changes where the bias passes the distance in the first column, so all biases
    between two neighbouring distances are equal. Of several best gaps it is the middle one.

    Args:
        rows: as :func:`compare` makes them, N×4.
    """
    behind, order = rows[:, 0].double().sort()
    gained = (rows[order, 1] - rows[order, 2]).cumsum(0)
    gained = torch.cat([gained.new_zeros(1), gained])  # after the first k predictions have changed
    edges = torch.cat([behind[:1] - 1, behind, behind[-1:] + 1])
    best = (gained == gained.max()).nonzero().flatten()
    k = int(best[len(best) // 2])
    return ((edges[k] + edges[k + 1]) / 2).item()
