"""TeacherModule: a network trained on labels alone."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.data.types import Batch, DataSpec
from kd_lightning.modules.base import Learner, NetFactory, with_channels_last
from kd_lightning.utils.partials import built


class TeacherModule(Learner):
    """Minimises the cross-entropy with the labels.

    Args:
        net: makes the network from (input_shape, num_classes).
        spec: shape, classes, mean and standard deviation of the data.
        **training: see :class:`~kd_lightning.modules.base.Learner`.
    """

    network_name = "net"
    role = "teacher"

    def __init__(self, net: NetFactory, spec: DataSpec, **training: Any) -> None:
        super().__init__(spec, **training)
        self.net = with_channels_last(built(net, spec.input_shape, spec.num_classes))

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.net(batch.inputs), batch.target)}
