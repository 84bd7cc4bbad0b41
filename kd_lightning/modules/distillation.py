"""DistillationModule: a student that learns from labels and from a frozen teacher."""

from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.batch import Batch, DataSpec, Prepared
from kd_lightning.cache import Answers, TeacherCache, ask
from kd_lightning.modules.learner import Learner, NetFactory, count_parameters, with_channels_last
from kd_lightning.objective import Objective


class DistillationModule(Learner):
    """Minimises an objective between a student and a frozen teacher.

    The teacher gets no gradient, stays in evaluation mode (dropout and batch statistics
    too), and is in no checkpoint.

    Args:
        student: makes the student from (input_shape, num_classes).
        teacher: the trained network, B×… to logits B×C.
        objective: puts the loss together.
        spec: the measure of the data.
        **training: see :class:`~kd_lightning.modules.learner.Learner`.
    """

    network_name = "student"

    def __init__(
        self,
        student: NetFactory,
        teacher: nn.Module,
        objective: Objective,
        spec: DataSpec,
        **training: Any,
    ) -> None:
        super().__init__(spec, with_teacher=True, **training)
        self.student = with_channels_last(student(spec.input_shape, spec.num_classes))
        self.teacher = with_channels_last(teacher).requires_grad_(False).eval()
        self.objective = objective
        self.answers: dict[str, Answers] = {}
        self.strict_loading = False  # checkpoints lack the teacher
        self.register_state_dict_post_hook(_drop_teacher)

    def train(self, mode: bool = True) -> "DistillationModule":
        super().train(mode)
        self.teacher.eval()
        return self

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        z_t = self.teacher_logits(batch, "train") if self.objective.needs_teacher else None
        return self.objective(self.student(batch.inputs), z_t, batch.target)

    def settings(self) -> dict[str, float]:
        return self.objective.settings()

    def describe(self) -> dict[str, float]:
        teacher, student = count_parameters(self.teacher), count_parameters(self.student)
        return {
            "parameters": student,
            "teacher_parameters": teacher,
            "compression": teacher / student,
        }

    def evaluate(self, batch: Batch, split: str) -> None:
        z_t = self.teacher_logits(batch, split)
        self.evaluation.update(self.student(batch.inputs), batch.target, z_t)

    def teacher_logits(self, batch: Batch, split: str) -> Tensor:
        """What the teacher answers to a batch of a split, B×C; from memory where it can."""
        if split in self.answers:
            return self.answers[split].read(batch.index, self.current_epoch)["logits"]
        return ask(self.teacher, batch.inputs)["logits"]

    def remember(
        self, split: str, inputs: Prepared, cache: TeacherCache, device: torch.device
    ) -> None:
        """Have the teacher answer to a whole split once, before its batches come."""
        if split != "train" or self.objective.needs_teacher:
            answers = cache.answers(self.teacher, inputs, device)
            self.answers |= {split: answers} if answers else {}


def _drop_teacher(
    module: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any]
) -> None:
    for key in [k for k in state if k.startswith(f"{prefix}teacher.")]:
        del state[key]
