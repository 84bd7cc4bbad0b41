"""ProbeModule: a linear probe of a pretrained network, solved in one step."""

from typing import Any

from torch import Tensor

from kd_lightning.modules.embeddings import labelled_embeddings
from kd_lightning.modules.supervised import TeacherModule
from kd_lightning.nets.probe import LinearProbe, solve
from kd_lightning.teachers.cache import TeacherCache
from kd_lightning.utils.errors import UserError


class ProbeModule(TeacherModule):
    """Teacher whose head is solved on the embeddings of the labelled training samples.

    The training has a single step and ends after it; the optimizer is not used.

    Args:
        net: a :class:`~kd_lightning.nets.probe.LinearProbe`, or a factory of one.
        cache: storage of the embeddings; in memory by default.
        **training: see :class:`~kd_lightning.modules.base.BaseModule`.

    Raises:
        UserError: if the network is no linear probe.
    """

    def __init__(self, net: Any, cache: TeacherCache | None = None, **training: Any) -> None:
        super().__init__(net, **training)
        if not isinstance(self.net, LinearProbe):
            raise UserError(f"a probe needs a LinearProbe, got a {type(self.net).__name__}")
        # The head is solved, not optimised by Lightning's steps.
        self.automatic_optimization = False
        self.cache = cache if cache is not None else TeacherCache(root=None)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert isinstance(self.net, LinearProbe)
        data = getattr(self.trainer, "datamodule", None)
        backbone, device = self.net.backbone, self.device
        found = labelled_embeddings(data, backbone, self.net.path, device, self.cache)
        solve(*found, self.net.head)
        # Without gradients it changes nothing, but it counts as a step, without which Lightning
        # writes no checkpoint.
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        optimizer.step()
        self.trainer.should_stop = True  # validation and checkpoint follow
        return super().training_step(batch, batch_idx)
