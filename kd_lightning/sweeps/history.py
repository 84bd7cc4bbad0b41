"""What the training of many students leaves behind: logged values, and weights worth keeping."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kd_lightning.sweeps.students import State


@dataclass
class Entry:
    """Values that every student logs at a step.

    Attributes:
        step: the step, as loggers number it.
        values: by name; one value for each student.
        epoch: the epoch that is logged with them; None if none is.
    """

    step: int
    values: dict[str, list[float]]
    epoch: int | None = None

    def of(self, student: int) -> dict[str, float]:
        """Return the values of one student."""
        own = {name: values[student] for name, values in self.values.items()}
        return own if self.epoch is None else {**own, "epoch": self.epoch}


@dataclass
class Epoch:
    """One epoch of all students.

    Attributes:
        entries: what was logged.
        figures: figures by name for the log's line, one value for each student.
        seconds: its duration, divided by the number of students.
    """

    entries: list[Entry] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def line(self, student: int) -> dict[str, float]:
        """Return the figures of one student for the line of the log."""
        return {name: values[student] for name, values in self.figures.items()}


@dataclass
class Kept:
    """Weights and optimizer states of an epoch, which may be another one for each student.

    Attributes:
        state: weights and buffers, S×… each.
        optimizer: state of each weight, S×… each; numbers that all share are not repeated.
        shared: those numbers by epoch, such as Adam's count of steps.
        epochs: epoch of each student, from 0; −1 before the first.
        details: what else a checkpoint has, of each student.
    """

    state: State
    optimizer: list[dict[str, Tensor]]
    epochs: list[int]
    details: list[dict[str, Any]]
    shared: dict[int, list[dict[str, Tensor]]] = field(default_factory=dict)

    @classmethod
    def nothing(cls, students: int) -> "Kept":
        """Return the state before the first epoch."""
        return cls({}, [], [-1] * students, [{} for _ in range(students)])

    def take(
        self,
        whose: Sequence[bool],
        epoch: int,
        state: Mapping[str, Tensor],
        optimizer: Sequence[Mapping[str, Tensor]],
        details: Sequence[dict[str, Any]],
    ) -> None:
        """Replace what is kept of some students.

        Args:
            whose: for each student, whether to.
            epoch: the current epoch.
            state: current weights and buffers.
            optimizer: current state of the optimizer.
            details: what else to keep of each student.
        """
        if not any(whose):
            return
        count = len(whose)
        mask = torch.tensor(whose)
        own = [{k: v for k, v in one.items() if _is_stacked(v, count)} for one in optimizer]
        rest = [{k: v for k, v in one.items() if not _is_stacked(v, count)} for one in optimizer]
        if not self.state:
            self.state = {k: v.clone() for k, v in state.items()}
            self.optimizer = [{k: v.clone() for k, v in one.items()} for one in own]
        elif all(whose):
            _copy(self.state, state)
            for there, here in zip(self.optimizer, own, strict=True):
                _copy(there, here)
        else:
            _blend(mask, self.state, state)
            for there, here in zip(self.optimizer, own, strict=True):
                _blend(mask, there, here)
        for i in (i for i in range(count) if whose[i]):
            self.epochs[i], self.details[i] = epoch, details[i]
        self.shared[epoch] = [{k: v.clone() for k, v in one.items()} for one in rest]
        self.shared = {e: kept for e, kept in self.shared.items() if e in self.epochs}

    def optimizer_of(self, student: int) -> list[dict[str, Tensor]]:
        """Return the optimizer's state of one student: S×… each, and shared numbers."""
        shared = self.shared[self.epochs[student]]
        return [{**one, **other} for one, other in zip(self.optimizer, shared, strict=True)]


def _is_stacked(value: Tensor, students: int) -> bool:
    return value.dim() > 0 and len(value) == students


def _copy(there: dict[str, Tensor], here: Mapping[str, Tensor]) -> None:
    for name, value in here.items():
        there[name].copy_(value)


def _blend(mask: Tensor, there: dict[str, Tensor], here: Mapping[str, Tensor]) -> None:
    for name, value in here.items():
        rows = mask.to(value.device).nonzero().flatten()
        there[name].index_copy_(0, rows, value.index_select(0, rows))


@dataclass
class History:
    """A training of S students.

    Attributes:
        epochs: what each epoch logged.
        best: weights of each student's best epoch.
        last: weights of each student's last epoch that it completed.
        problems: why a student failed, by its position.
        steps: optimizer steps of an epoch.
        seconds: duration, divided by the number of students.
        initial: logits of each student on validation data before the training, S×N×C; None
            where no picture shows them.
    """

    best: Kept
    last: Kept
    epochs: list[Epoch] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    stopped: dict[int, int] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    initial: Tensor | None = None

    def entries_of(self, student: int) -> list[Entry]:
        """Return what a student logged, up to its failure if it failed."""
        found = [entry for epoch in self.epochs for entry in epoch.entries]
        return found[: self.stopped.get(student, len(found))]
