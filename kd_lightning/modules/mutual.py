"""MutualModule: students without a teacher that learn from labels and from one another."""

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.data.types import Batch, DataSpec
from kd_lightning.metrics.cost import count_parameters
from kd_lightning.metrics.evaluation import Evaluation
from kd_lightning.modules.base import Learner, NetFactory, with_channels_last
from kd_lightning.objective import Objective
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.partials import built


class MutualModule(Learner):
    """Each student minimises the mean of an objective over all the others as its teacher.

    The first student is the one that counts: ``accuracy`` is its figure, and it is what a
    finished run gives back.

    Args:
        students: by name, what makes each student from (input_shape, num_classes); None
            for another one like the first.
        objective: between one student and another, which gets no gradient from it.
        spec: shape, classes, mean and standard deviation of the data.
        **training: see :class:`~kd_lightning.modules.base.Learner`.

    Raises:
        UserError: if there is one student only, one has a name that cannot be, or the
            objective compares layers.

    Source: Zhang et al. 2018, "Deep Mutual Learning", arXiv 1706.00384.
    """

    def __init__(
        self,
        students: Mapping[str, NetFactory | None],
        objective: Objective,
        spec: DataSpec,
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        if not isinstance(students, Mapping) or len(students) < 2:
            raise UserError("model.students needs two students or more: first, second …")
        if objective.terms:
            raise UserError("model=mutual compares answers only: choose a method without layers")
        if wrong := [n for n in students if n == "loss" or hasattr(nn.ModuleDict, n)]:
            raise UserError(f"model.students.{wrong[0]}: a student cannot be called so")
        first, *self.others = students
        usual = students[first]
        if usual is None:
            raise UserError(f"model.students.{first} needs a network: net@model.students.{first}=")
        self.students = nn.ModuleDict(
            {
                name: with_channels_last(built(make or usual, spec.input_shape, spec.num_classes))
                for name, make in students.items()
            }
        )
        self.network_name = f"students.{first}"
        self.objective = objective
        nothing = torch.empty(0)  # without terms only a learned temperature has to be made
        objective.build(self.network, self.network, nothing, spec.num_classes, nothing)
        self.evaluations = nn.ModuleDict(
            {name: Evaluation(spec.num_classes, with_teacher=False) for name in self.others}
        )

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        logits = {name: net(batch.inputs) for name, net in self.students.items()}
        peers = len(logits) - 1
        losses = {name: torch.zeros((), device=batch.target.device) for name in logits}
        for one, other in permutations(logits, 2):
            outputs = {"logits": logits[one]}, {"logits": logits[other]}
            found = self.objective(*outputs, batch.target, batch.index, self.progress)
            losses[one] = losses[one] + found["loss"] / peers
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def settings(self) -> dict[str, float]:
        return self.objective.settings(self.progress)

    def describe(self) -> dict[str, float]:
        sizes = {f"parameters_{n}": count_parameters(self.students[n]) for n in self.others}
        return {**super().describe(), **sizes}

    def evaluate(self, batch: Batch, split: str) -> None:
        super().evaluate(batch, split)
        for name, evaluation in self.evaluations.items():
            assert isinstance(evaluation, Evaluation)
            evaluation.update(self.students[name](batch.inputs), batch.target)

    def log_evaluation(self, split: str) -> dict[str, Tensor]:
        for name, evaluation in self.evaluations.items():
            assert isinstance(evaluation, Evaluation)
            for figure, value in evaluation.result().items():
                self.log(f"{split}/{figure}_{name}", value, sync_dist=True)
        return super().log_evaluation(split)
