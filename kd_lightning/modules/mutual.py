"""MutualModule: students trained together, on labels and on one another's outputs."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.data.types import Batch
from kd_lightning.metrics.cost import count_parameters
from kd_lightning.metrics.evaluation import Evaluation
from kd_lightning.modules.base import BaseModule, NetFactory
from kd_lightning.nets.memory_format import with_channels_last
from kd_lightning.nets.taps import dry_run
from kd_lightning.objective import Objective
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import call, fitting


class MutualModule(BaseModule):
    """Mutual learning without a teacher.

    Each student minimises the mean of the objective over all other students as its teacher.
    The first student is reported: ``accuracy`` is its figure, and :func:`load_run` returns it.

    Args:
        students: networks, in a list or by name, or factories by name that create them for the
            task's data; None repeats the first factory.
        objective: loss between a student and another one as its teacher, which gets no
            gradient; by default the paper's, the hard loss plus KL at T = 1.
        **training: see :class:`~kd_lightning.modules.base.BaseModule`.

    Raises:
        UserError: if there are fewer than two students, a name is reserved, or the objective
            compares layers.

    Source: Zhang et al. 2018, "Deep Mutual Learning", arXiv 1706.00384.
    """

    uses_unlabelled = True

    def __init__(
        self,
        students: Mapping[str, nn.Module | NetFactory | None] | Sequence[nn.Module],
        objective: Objective | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        if isinstance(students, Sequence):
            students = {f"student_{i}": net for i, net in enumerate(students)}
        if objective is None:
            objective = Objective(alpha=1.0, temperature=1.0, hard_weight=1.0)
        if not isinstance(students, Mapping) or len(students) < 2:
            raise UserError("model.students needs at least two students: first, second, …")
        if objective.terms:
            raise UserError("model=mutual compares logits only: choose a method without layers")
        if wrong := [n for n in students if n == "loss" or hasattr(nn.ModuleDict, n)]:
            raise UserError(f"model.students.{wrong[0]}: this name is reserved, choose another")
        first, *self.others = students
        usual = students[first]
        if usual is None:
            raise UserError(f"model.students.{first} needs a network: net@model.students.{first}=")
        if isinstance(usual, nn.Module) and None in students.values():
            raise UserError("model.students: None repeats a factory; pass another network instead")
        self.students = nn.ModuleDict(
            {
                name: with_channels_last(self.task.build(given if given is not None else usual))
                for name, given in students.items()
            }
        )
        self.network_name = f"students.{first}"
        self.objective = objective
        if self.task.spec is not None:  # only a learned temperature has anything to create
            nothing = torch.empty(0)
            objective.build(self.network, self.network, nothing, self.task.spec.num_classes)
        self.evaluations = nn.ModuleDict()  # of the other students

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and not self.objective.is_built:
            inputs = fitting(self.example_batch().inputs, self.network)
            classes = dry_run(self.network, inputs, ())["logits"].shape[-1]
            self.objective.build(self.network, self.network, inputs, classes)

    @property
    def role(self) -> str:
        return self.objective.role

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        logits = {name: self._logits(net, batch) for name, net in self.students.items()}
        target, index = self.task.rows(batch.target, batch.target), self.task.row_index(batch)
        peers = len(logits) - 1
        losses = {name: torch.zeros((), device=target.device) for name in logits}
        # Each network runs once; its logits serve both as a student's and as a teacher's.
        for one, other in permutations(logits, 2):
            outputs = {"logits": logits[one]}, {"logits": logits[other]}
            found = self.objective(*outputs, target, index, self.progress)
            losses[one] = losses[one] + found["loss"] / peers
        # The sum has each student's own gradient, since the objective detaches the others.
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def _logits(self, net: nn.Module, batch: Batch) -> Tensor:
        return self.task.rows(call(net, batch.inputs), batch.target)

    def settings(self) -> dict[str, float]:
        return self.objective.settings(self.progress)

    def describe(self) -> dict[str, float]:
        sizes = {f"parameters_{n}": count_parameters(self.students[n]) for n in self.others}
        return {**super().describe(), **sizes}

    def evaluate(self, batch: Batch) -> dict[str, Any]:
        """Return predictions of the first student, and logits of the rest under ``others``."""
        others = {name: self._logits(self.students[name], batch) for name in self.others}
        return {**super().evaluate(batch), "others": others}

    def _forget_metrics(self) -> None:
        super()._forget_metrics()
        self.evaluations.clear()

    def measure(self, outputs: dict[str, Any], split: str) -> None:
        super().measure(outputs, split)
        for name, logits in outputs["others"].items():
            if name not in self.evaluations:
                made = self.task.evaluation(logits.shape[-1], with_teacher=False)
                self.evaluations[name] = made.to(self.device)
            evaluation = self.evaluations[name]
            assert isinstance(evaluation, Evaluation)
            evaluation.update(logits, outputs["target"])

    def log_evaluation(self, split: str) -> dict[str, Tensor]:
        for name, evaluation in self.evaluations.items():
            assert isinstance(evaluation, Evaluation)
            for figure, value in evaluation.result().items():
                self.log(f"{split}/{figure}_{name}", value, sync_dist=True)
        return super().log_evaluation(split)
