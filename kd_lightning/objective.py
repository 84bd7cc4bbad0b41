"""The training objective of a student: the one place where a loss is put together.

    L = (1 − α)·CE(z_s, y) + α·response(z_s, z_t) + Σ βᵢ·transferᵢ

B samples, C classes; z_s and z_t are the student's and the teacher's logits, B×C. Of M
teachers z_t is B×M×C.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.ensemble import MEANS
from kd_lightning.errors import UserError
from kd_lightning.losses.response import soft_targets
from kd_lightning.schedules import LearnedTemperature, Schedule, as_schedule
from kd_lightning.taps import Outputs
from kd_lightning.transfer.term import Term


class Objective(nn.Module):
    """Weighted sum of the hard loss on the labels, the response loss, and transfer terms.

    Args:
        alpha: weight of the response loss, in 0…1, a number or a schedule.
        temperature: T > 0 of the response loss, a number, a schedule, or learned. Its
            factor T² is part of that loss.
        response: the response loss, by default :func:`~kd_lightning.losses.soft_targets`.
            It is given what it names: ``z_s``, ``z_t``, ``temperature``, ``target``.
        hard_weight: weight of the hard loss where it is not 1 − alpha; alpha may then be
            any number from 0.
        transfer: terms that compare layers, by name.
        ensemble: of several teachers, the mean of ``probabilities`` at T or of ``logits``.

    Raises:
        UserError: if a number is out of its range.
    """

    def __init__(
        self,
        alpha: float | Schedule = 0.5,
        temperature: float | Schedule | LearnedTemperature = 5.0,
        response: Callable[..., Tensor] = soft_targets,
        hard_weight: float | Schedule | None = None,
        transfer: Mapping[str, Term] | None = None,
        ensemble: str = "probabilities",
    ) -> None:
        super().__init__()
        most = 1 if hard_weight is None else math.inf
        self.alpha = _within("alpha", alpha, 0, most, "weight of the teacher's answers")
        if isinstance(temperature, LearnedTemperature):
            self.temperature = temperature
        else:
            self.temperature = _within("temperature", temperature, 1e-9, 1e9, "a positive number")
        self.hard_weight = (
            (lambda epoch: 1 - self.alpha(epoch))
            if hard_weight is None
            else _within("hard_weight", hard_weight, 0, math.inf, "weight of the labels")
        )
        if ensemble not in MEANS:
            raise UserError(f"method.ensemble must be one of {', '.join(MEANS)}, got {ensemble}")
        self.mean_of_teachers = MEANS[ensemble]
        self.response = response
        self._asked = set(inspect.signature(response).parameters)
        self.uses_response = callable(alpha) or alpha > 0
        used = {k: t for k, t in (transfer or {}).items() if callable(t.weight) or t.weight != 0}
        self.transfer = nn.ModuleDict(used)
        self.weights = {
            name: _within(f"transfer.{name}.weight", term.weight, 0, math.inf, "its weight")
            for name, term in used.items()
        }
        self._last_temperature: Tensor | float = math.nan

    @property
    def needs_teacher(self) -> bool:
        """Whether any term with a weight looks at the teacher."""
        return self.uses_response or len(self.transfer) > 0

    @property
    def terms(self) -> dict[str, Term]:
        """The transfer terms by name."""
        return {k: t for k, t in self.transfer.items() if isinstance(t, Term)}

    @property
    def student_paths(self) -> list[str]:
        """The layers of the student that the terms look at."""
        return sorted({path for term in self.terms.values() for path in term.student})

    @property
    def teacher_paths(self) -> list[str]:
        """The layers of the teacher that the terms look at."""
        return sorted({path for term in self.terms.values() for path in term.teacher})

    def build(
        self, student: nn.Module, teacher: nn.Module, sample: Tensor, classes: int, labels: Tensor
    ) -> None:
        """Make what depends on networks and data: layers of the terms, learned temperatures.

        Args:
            student: the network in training.
            teacher: the frozen one.
            sample: a batch of inputs, of any content.
            classes: C.
            labels: class of each training sample, N.
        """
        if isinstance(self.temperature, LearnedTemperature):
            self.temperature.build(classes)
        for term in self.terms.values():
            term.connect(student, teacher, sample, labels)

    def settings(self, epoch: float) -> dict[str, float]:
        """The numbers that steer the objective at a time, to be logged beside its terms."""
        learned = isinstance(self.temperature, LearnedTemperature)
        temperature = self._last_temperature if learned else self.temperature(epoch)
        weights = {f"weight_{name}": weight(epoch) for name, weight in self.weights.items()}
        return {"alpha": self.alpha(epoch), "temperature": float(temperature), **weights}

    def forward(
        self,
        student: Outputs,
        teacher: Outputs | None,
        target: Tensor,
        index: Tensor | None = None,
        epoch: float = 0.0,
    ) -> dict[str, Tensor]:
        """The terms by name, unweighted, and their weighted sum under ``loss``.

        Args:
            student: ``logits``, B×C, and the layers at :attr:`student_paths`.
            teacher: ``logits``, B×C or B×M×C, and the layers at :attr:`teacher_paths`;
                may be absent where no term needs them.
            target: classes, B.
            index: positions of the samples in the training set, B, for terms that keep a
                memory of them.
            epoch: time trained so far; 2.5 is the middle of the third epoch.
        """
        terms = {"hard": F.cross_entropy(student["logits"], target)}
        loss = self.hard_weight(epoch) * terms["hard"]
        if self.needs_teacher:
            assert teacher is not None, "this objective needs the teacher's outputs"
            if self.uses_response:
                terms["response"] = self._response(student, teacher, target, epoch)
                loss = loss + self.alpha(epoch) * terms["response"]
            for name, term in self.transfer.items():
                terms[name] = term(student, teacher, index)
                loss = loss + self.weights[name](epoch) * terms[name]
        return {"loss": loss, **terms}

    def _response(self, student: Outputs, teacher: Outputs, target: Tensor, epoch: float) -> Tensor:
        z_s, z_t = student["logits"], teacher["logits"].detach()
        if isinstance(self.temperature, LearnedTemperature):
            temperature = self.temperature(z_s, self.mean_of_teachers(z_t, 1.0), epoch)
            self._last_temperature = temperature.detach().mean()
        else:
            temperature = self.temperature(epoch)
        z_t = self.mean_of_teachers(z_t, temperature)
        given = {"z_s": z_s, "z_t": z_t, "temperature": temperature, "target": target}
        return self.response(
            **{name: value for name, value in given.items() if name in self._asked}
        )


def _within(name: str, value: Any, least: float, most: float, what: str) -> Schedule:
    """A number or a schedule as a schedule, whose first and last value are in range."""
    schedule = as_schedule(value)
    for number in (schedule(0.0), schedule(math.inf)):
        if not least <= number <= most:
            wanted = f"lie in {least}…{most}" if math.isfinite(most) else f"be at least {least}"
            raise UserError(f"method.{name} must {wanted} ({what}), got {number}")
    return schedule
