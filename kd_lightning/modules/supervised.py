"""TeacherModule: a network trained on labels alone."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.data.types import Batch
from kd_lightning.modules.base import BaseModule, NetFactory
from kd_lightning.nets.memory_format import with_channels_last
from kd_lightning.utils.networks import call


class TeacherModule(BaseModule):
    """Supervised training with the cross-entropy loss.

    Args:
        net: the network, or a factory that creates it for the task's data.
        **training: see :class:`~kd_lightning.modules.base.BaseModule`.
    """

    network_name = "net"

    def __init__(self, net: nn.Module | NetFactory, **training: Any) -> None:
        super().__init__(**training)
        self.net = with_channels_last(self.task.build(net))

    @property
    def role(self) -> str:
        return "teacher"

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.task.rows(call(self.net, batch.inputs), batch.target)
        return {"loss": F.cross_entropy(logits, self.task.rows(batch.target, batch.target))}
