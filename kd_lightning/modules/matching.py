"""MatchingModule: a student of embeddings, without labels, measured by a linear probe."""

from typing import Any

from torch import Tensor, nn

from kd_lightning.data.types import Batch
from kd_lightning.modules.base import BaseModule, NetFactory
from kd_lightning.modules.distillation import DistillationModule
from kd_lightning.modules.embeddings import labelled_embeddings
from kd_lightning.nets.probe import solve
from kd_lightning.nets.taps import embedding, layers
from kd_lightning.objective import Objective
from kd_lightning.teachers.cache import TeacherCache
from kd_lightning.transfer import FeatureMatching
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import fitting


class MatchingModule(DistillationModule):
    """Distillation of embeddings; the figures are those of a linear probe.

    The student's last linear layer is not trained with the others. Before every validation it is
    solved on the student's embeddings of the labelled training samples, so that accuracy, the best
    checkpoint and predictions are those of a linear probe. The teacher's classes may be others:
    its predictions are not compared.

    Args:
        student: see :class:`~kd_lightning.modules.distillation.DistillationModule`.
        teacher: as above.
        objective: the loss; by default :class:`~kd_lightning.transfer.FeatureMatching` alone.
        labels: as above.
        cache: as above.
        **training: see :class:`~kd_lightning.modules.base.BaseModule`.

    Raises:
        UserError: if the student does not end in a linear layer on its embedding, or the task has
            no specification of the data.

    Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent",
    arXiv 2106.05237, for the same view and long schedules.
    """

    def __init__(
        self,
        student: nn.Module | NetFactory,
        teacher: nn.Module | NetFactory,
        objective: Objective | None = None,
        labels: Tensor | None = None,
        cache: TeacherCache | None = None,
        **training: Any,
    ) -> None:
        if objective is None:
            matching = {"feature_matching": FeatureMatching()}
            objective = Objective(alpha=0.0, hard_weight=0.0, transfer=matching)
        super().__init__(student, teacher, objective, labels, cache, **training)
        example = self.task.example()
        if example is None:
            raise UserError("feature matching needs a specification of the data: pass task=")
        found = layers(self.student, fitting(example.inputs, self.student))
        linear = [layer for layer in found if isinstance(layer.module, nn.Linear)]
        self.path = embedding(found).path
        if not linear or (linear[-1] is not found[-1] and found.index(linear[-1]) < len(found) - 2):
            raise UserError(
                f"{type(self.student).__name__} does not end in a linear layer, which feature "
                "matching solves for the figures: choose another student"
            )
        self._head = linear[-1].path
        self.head.requires_grad_(False)  # DDP raises on parameters without a gradient

    @property
    def head(self) -> nn.Linear:
        """The student's last layer."""
        head = self.student.get_submodule(self._head)
        assert isinstance(head, nn.Linear)
        return head

    @property
    def with_teacher(self) -> bool:
        return False

    def evaluate(self, batch: Batch) -> dict[str, Any]:
        return BaseModule.evaluate(self, batch)

    def on_validation_start(self) -> None:
        BaseModule.on_validation_start(self)
        if self.is_thorough:
            return  # the checkpoint has its own head
        data = getattr(self.trainer, "datamodule", None)
        found = labelled_embeddings(data, self.student, self.path, self.device)
        solve(*found, self.head)
        # All processes have solved the same problem; not necessarily to the last bit.
        state = {name: value.cpu() for name, value in self.head.state_dict().items()}
        self.head.load_state_dict(self.trainer.strategy.broadcast(state))

    def on_test_start(self) -> None:
        BaseModule.on_test_start(self)

    def _fill_cache(self, *splits: str) -> None:
        if "train" in splits:  # the teacher answers for no other
            super()._fill_cache("train")
