"""Max-norm regularisation: a limit on the norm of each unit's incoming weights."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.nn.utils import parametrize

from kd_lightning.data.types import Batch
from kd_lightning.modules.base import BaseModule


class MaxNorm(L.Callback):
    """Limit the L2 norm of each unit's incoming weights after every step.

    The incoming weights of a unit are a row of a linear layer's weight, outputs×inputs. Rows
    that are longer than the limit are scaled down; biases and other layers are unchanged.

    Args:
        limit: largest norm, c.

    Source: Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting", JMLR 15, §5.1; c = 2 for its networks on MNIST.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit

    @torch.no_grad()
    # After the optimizer step, not as a parametrization or a term of the loss: the projection
    # leaves short rows exactly as they are, unlike weight decay, so that a high learning rate
    # is safe from the start without holding small weights back.
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: torch.Tensor | Mapping[str, Any] | None,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, BaseModule)
        for layer in pl_module.network.modules():
            # dim 0 holds the outputs; the limit of the source is per unit, not per layer
            if isinstance(layer, nn.Linear):
                # of a quantised layer, the weight that is trained
                own: Any = layer
                is_computed = parametrize.is_parametrized(layer, "weight")
                weight = own.parametrizations.weight.original if is_computed else own.weight
                weight.renorm_(p=2, dim=0, maxnorm=self.limit)
