"""DistillationModule: a student that learns from labels and from a frozen teacher."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.data.types import Batch, DataSpec, Prepared
from kd_lightning.metrics.evaluation import LogitsAt
from kd_lightning.modules.base import Learner, NetFactory, with_channels_last
from kd_lightning.nets.ensemble import mean_probabilities
from kd_lightning.nets.taps import Outputs, tapped
from kd_lightning.objective import Objective
from kd_lightning.teachers.cache import Answers, TeacherCache, ask
from kd_lightning.utils.partials import built


class DistillationModule(Learner):
    """Minimises an objective between a student and a frozen teacher.

    The teacher gets no gradient, stays in evaluation mode (dropout and batch statistics
    too), and is in no checkpoint. Layers that terms of the objective need are trained and
    kept beside the student, and are no part of it.

    Args:
        student: makes the student from (input_shape, num_classes).
        teacher: the trained network, B×… to logits B×C, or B×M×C of several.
        objective: puts the loss together.
        spec: shape, classes, mean and standard deviation of the data.
        labels: class of each training sample, N, for terms that ask for it.
        **training: see :class:`~kd_lightning.modules.base.Learner`.
    """

    network_name = "student"

    def __init__(
        self,
        student: NetFactory,
        teacher: nn.Module,
        objective: Objective,
        spec: DataSpec,
        labels: Tensor | None = None,
        **training: Any,
    ) -> None:
        super().__init__(spec, with_teacher=True, **training)
        self.student = with_channels_last(built(student, spec.input_shape, spec.num_classes))
        self.teacher = with_channels_last(teacher).requires_grad_(False).eval()
        self.objective = objective
        labels = torch.empty(0, dtype=torch.long) if labels is None else labels
        sample = torch.zeros(2, *spec.input_shape)
        objective.build(self.student, self.teacher, sample, spec.num_classes, labels)
        self.answers: dict[str, Answers] = {}
        self.strict_loading = False  # checkpoints lack the teacher
        self.register_state_dict_post_hook(_drop_teacher)

    def train(self, mode: bool = True) -> "DistillationModule":
        super().train(mode)
        self.teacher.eval()
        return self

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        return self.terms_of(self.student, self.objective, batch)

    def terms_of(self, student: nn.Module, objective: Objective, batch: Batch) -> dict[str, Tensor]:
        """The terms of a training batch, of a student and an objective that may be copies."""
        z_s = tapped(student, batch.inputs, objective.student_paths)
        z_t = self.teacher_outputs(batch, "train") if objective.needs_teacher else None
        return objective(z_s, z_t, batch.target, batch.index, self.progress)

    def settings(self) -> dict[str, float]:
        return self.objective.settings(self.progress)

    def describe(self) -> dict[str, float]:
        student, teacher = self.costs_of(self.student), self.costs_of(self.teacher)
        return {
            **student,
            **{f"teacher_{name}": cost for name, cost in teacher.items()},
            "compression": teacher["parameters"] / student["parameters"],
        }

    def evaluate(self, batch: Batch, split: str) -> None:
        z_s, teacher, temperature = self.opinions(batch, split)
        self.evaluation.update(z_s, batch.target, teacher(1.0))
        if self.is_thorough:
            self.evidence.update(z_s, batch.target, teacher, temperature)

    def opinions(self, batch: Batch, split: str) -> tuple[Tensor, LogitsAt, float | Tensor]:
        """The student's logits, B×C, the teacher's at any temperature, and T of the training."""
        z_s, z_t = self.student(batch.inputs), self.teacher_outputs(batch, split)["logits"]
        temperature = self.objective.temperature_of(z_s, z_t, self.progress)
        return z_s, partial(mean_probabilities, z_t), temperature

    def teacher_outputs(self, batch: Batch, split: str) -> Outputs:
        """What the teacher says of a batch of a split; from memory where it can.

        That is its ``logits`` and, of training samples, the layers that terms look at.
        """
        if split in self.answers:
            return self.answers[split].read(batch.index, self.current_epoch)
        return ask(self.teacher, batch.inputs, self._paths(split))

    def remember(
        self, split: str, inputs: Prepared, cache: TeacherCache, device: torch.device
    ) -> None:
        """Have the teacher answer to a whole split once, before its batches come."""
        if split != "train" or self.objective.needs_teacher:
            answers = cache.answers(self.teacher, inputs, device, self._paths(split))
            self.answers |= {split: answers} if answers else {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The layers of terms with a learning rate of their own are groups of their own."""
        own = {name: t for name, t in self.objective.terms.items() if t.lr is not None}
        groups = [{"params": list(term.parameters()), "lr": term.lr} for term in own.values()]
        apart = {id(p) for group in groups for p in group["params"]}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in apart]
        return [{"params": rest}, *(group for group in groups if group["params"])]

    def _paths(self, split: str) -> list[str]:
        return self.objective.teacher_paths if split == "train" else []


def _drop_teacher(
    module: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any]
) -> None:
    for key in [k for k in state if k.startswith(f"{prefix}teacher.")]:
        del state[key]
