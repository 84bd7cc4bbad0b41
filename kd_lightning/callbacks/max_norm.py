"""A limit on each unit's incoming weights, as dropout is often trained with."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import nn

from kd_lightning.data.types import Batch
from kd_lightning.modules.base import Learner


class MaxNorm(L.Callback):
    """After each step, scales the weights that lead to a unit down to a norm of at most a limit.

    These are the rows of each linear layer's weight, outputs×inputs, of the network in
    training. Unlike weight decay it leaves small weights alone, so high learning rates are
    safe from the start.

    Args:
        limit: c, of the L2 norm.

    Source: Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting", JMLR 15, §5.1; c = 2 for its networks on MNIST.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: torch.Tensor | Mapping[str, Any] | None,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, Learner)
        for layer in pl_module.network.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.renorm_(p=2, dim=0, maxnorm=self.limit)
