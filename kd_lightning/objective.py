"""The training objective of a student: the one place where a loss is put together.

    L = (1 − α)·CE(z_s, y) + α·response(z_s, z_t) + Σ βᵢ·transferᵢ

N rows, C classes; z_s and z_t are the student's and the teacher's logits, N×C. Of M teachers
z_t is N×M×C. A row is a sample, or a token of a token classifier.
"""

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses.response import soft_targets
from kd_lightning.nets.ensemble import MEANS, Ensemble
from kd_lightning.nets.taps import Outputs
from kd_lightning.schedules import LearnedTemperature, Schedule, as_schedule
from kd_lightning.transfer.term import Rows, Term
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import Inputs
from kd_lightning.utils.partials import bare

log = logging.getLogger(__name__)

RESERVED = ("loss", "hard", "response")  # names of the parts that are not transfer terms

Response = Callable[..., Tensor]


class Objective(nn.Module):
    """Weighted sum of the hard loss on the labels, the response loss, and transfer terms.

    Args:
        alpha: weight of the response loss, in 0…1, a number or a schedule.
        temperature: T > 0 of the response loss: a number, a schedule, or learned. The factor
            T² is part of that loss.
        response: the response loss, by default :func:`~kd_lightning.losses.soft_targets`.
            It is called with those of ``z_s``, ``z_t``, ``temperature``, ``target`` and
            ``index`` that its signature names.
        hard_weight: weight of the hard loss, 1 − alpha by default; if it is given, alpha may
            be any number from 0.
        transfer: terms that compare layers, by name.
        ensemble: of several teachers, the mean of ``probabilities`` at T or of ``logits``.
        label_smoothing: share of each label that the hard loss spreads over all classes, in
            0…1 (Szegedy et al. 2016, arXiv 1512.00567, §7).

    Raises:
        UserError: if a number is out of range, or a transfer term is not one.

    >>> objective = Objective(temperature=4.0, alpha=0.9)
    >>> z_s, z_t, y = torch.zeros(2, 3), torch.eye(3)[:2], torch.tensor([0, 1])
    >>> terms = objective({"logits": z_s}, {"logits": z_t}, y)
    >>> bool(terms["loss"] == 0.1 * terms["hard"] + 0.9 * terms["response"])
    True
    """

    def __init__(
        self,
        alpha: float | Schedule = 0.5,
        temperature: float | Schedule | LearnedTemperature = 5.0,
        response: Response = soft_targets,
        hard_weight: float | Schedule | None = None,
        transfer: Mapping[str, Term] | None = None,
        ensemble: str = "probabilities",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        # With an own hard_weight the two weights need not sum to one.
        most = 1 if hard_weight is None else math.inf
        self.alpha = _weight("alpha", alpha, "weight of the response loss", most)
        self.temperature = (
            temperature
            if isinstance(temperature, LearnedTemperature)
            else _schedule("temperature", temperature, lambda t: t > 0, "be a positive number")
        )
        self.hard_weight = (
            (lambda epoch: 1 - self.alpha(epoch))
            if hard_weight is None
            else _weight("hard_weight", hard_weight, "weight of the labels")
        )
        if ensemble not in MEANS:
            raise UserError(f"method.ensemble must be one of {', '.join(MEANS)}, got {ensemble}")
        if not 0 <= label_smoothing <= 1:
            raise UserError(f"method.label_smoothing must lie in 0…1, got {label_smoothing}")
        self.mean_of_teachers, self.label_smoothing = MEANS[ensemble], label_smoothing
        self.response = bare(response)
        self._response_takes = set(inspect.signature(response).parameters)
        self.uses_response = callable(alpha) or alpha > 0
        if isinstance(temperature, LearnedTemperature):
            self._check_that_it_learns()
        # A term without weight is dropped: its layers would get no gradient, and DDP raises on
        # parameters that get none.
        used = {k: t for k, t in (transfer or {}).items() if _is_used(k, t)}
        self.transfer = nn.ModuleDict(used)
        self.weights = {
            name: _weight(f"transfer.{name}.weight", term.weight, "weight of the term")
            for name, term in used.items()
        }
        needs_build = bool(used) or isinstance(temperature, LearnedTemperature)
        self.is_built = not needs_build
        self._last_temperature: Tensor | float = math.nan

    def _check_that_it_learns(self) -> None:
        """A temperature that gets no gradient would make DDP raise."""
        if not self.uses_response or "temperature" not in self._response_takes:
            raise UserError(
                "a learned method.temperature needs method.alpha above 0 and a response that "
                "takes a temperature"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term with a weight uses the teacher."""
        return self.uses_response or len(self.transfer) > 0

    @property
    def role(self) -> str:
        """What a student of this objective is: ``student``, ``baseline`` or ``control: …``."""
        if not self.needs_teacher:
            return "control: label_smoothing" if self.label_smoothing else "baseline"
        function = getattr(self.response, "func", self.response)
        control = getattr(function, "control", "") if self.uses_response else ""
        return f"control: {control}" if control else "student"

    @property
    def terms(self) -> dict[str, Term]:
        """The transfer terms by name."""
        return {k: t for k, t in self.transfer.items() if isinstance(t, Term)}

    @property
    def student_paths(self) -> list[str]:
        """The layers of the student that the terms compare."""
        return sorted({path for term in self.terms.values() for path in term.student})

    @property
    def teacher_paths(self) -> list[str]:
        """The layers of the teacher that the terms compare."""
        return sorted({path for term in self.terms.values() for path in term.teacher})

    def build(
        self,
        student: nn.Module,
        teacher: nn.Module,
        sample: Inputs,
        classes: int,
        labels: Tensor | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Make what depends on networks and data: layers of the terms, learned temperatures.

        Args:
            student: the network in training.
            teacher: the frozen one.
            sample: a batch of inputs, of any content.
            classes: C.
            labels: class of each training row, for terms that need them.
            rows: selects the rows that are asked for from a layer's output; all by default.

        Raises:
            UserError: if a term's layers do not exist or do not fit it, if it needs labels and
                there are none, or if something is asked of several teachers that only one
                can give.
        """
        if isinstance(teacher, Ensemble):
            self._check_what_is_asked_of_several()
        if isinstance(self.temperature, LearnedTemperature):
            self.temperature.build(classes)
        for name, term in self.terms.items():
            if term.needs_labels and (labels is None or not len(labels)):
                raise UserError(
                    f"method.transfer.{name} needs the class of every training sample: pass "
                    "labels=, or use a datamodule with a property `labels`"
                )
            given = torch.empty(0, dtype=torch.long) if labels is None else labels
            try:
                term.connect(student, teacher, sample, given, rows)
            except UserError as error:
                raise UserError(f"method.transfer.{name}: {error}") from error
            if term.lr is not None and not list(term.parameters()):
                log.warning("method.transfer.%s.lr has no effect: it has no layers to learn", name)
        self.is_built = True

    def _check_what_is_asked_of_several(self) -> None:
        for name, term in self.terms.items():
            if not term.teacher:
                raise UserError(
                    f"method.transfer.{name}: say which layer of several teachers is meant, as "
                    f"in method.transfer.{name}.teacher=members.0.…"
                )
        learned = isinstance(self.temperature, LearnedTemperature)
        if learned and self.mean_of_teachers is not MEANS["logits"]:
            # The mean of probabilities changes with T, but no gradient passes the teachers.
            raise UserError(
                "a learned temperature takes the mean of several teachers' logits: "
                "method.ensemble=logits"
            )

    def settings(self, epoch: float) -> dict[str, float]:
        """The numbers that steer the objective at a time, to be logged beside its terms."""
        learned = isinstance(self.temperature, LearnedTemperature)
        temperature = self._last_temperature if learned else self.temperature(epoch)
        weights = {f"weight_{name}": weight(epoch) for name, weight in self.weights.items()}
        return {"alpha": self.alpha(epoch), "temperature": float(temperature), **weights}

    def term_weights(self, epoch: float) -> dict[str, float]:
        """The weight of each term at a time, by the term's name."""
        response = {"response": self.alpha(epoch)} if self.uses_response else {}
        others = {name: weight(epoch) for name, weight in self.weights.items()}
        return {"hard": self.hard_weight(epoch), **response, **others}

    def temperature_of(self, z_s: Tensor, z_t: Tensor, epoch: float) -> float | Tensor:
        """T for a batch of logits; N×1 where each row has its own."""
        if isinstance(self.temperature, LearnedTemperature):
            return self.temperature(z_s, self.mean_of_teachers(z_t, 1.0), epoch)
        return self.temperature(epoch)

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
            student: ``logits``, N×C, and the layers at :attr:`student_paths`.
            teacher: ``logits``, N×C or N×M×C, and the layers at :attr:`teacher_paths`;
                may be None where no term needs them.
            target: classes, N.
            index: positions of the rows in the training set, N, for terms that keep a memory
                of them.
            epoch: time trained so far; 2.5 is the middle of the third epoch.

        Raises:
            UserError: if a term needs the index and there is none.
        """
        weights = self.term_weights(epoch)
        z_s, smoothing = student["logits"], self.label_smoothing
        terms = {"hard": F.cross_entropy(z_s, target, label_smoothing=smoothing)}
        loss = weights["hard"] * terms["hard"]
        if self.needs_teacher:
            assert teacher is not None, "this objective needs the teacher's outputs"
            if self.uses_response:
                terms["response"] = self._response(z_s, teacher, target, index, epoch)
                loss = loss + weights["response"] * terms["response"]
            for name, term in self.terms.items():
                if term.needs_index and index is None:
                    raise _no_index(f"method.transfer.{name}")
                terms[name] = term(student, teacher, index)
                loss = loss + weights[name] * terms[name]
        return {"loss": loss, **terms}

    def _response(
        self, z_s: Tensor, teacher: Outputs, target: Tensor, index: Tensor | None, epoch: float
    ) -> Tensor:
        if index is None and "index" in self._response_takes:
            raise _no_index("method.response")
        z_t = teacher["logits"].detach()
        temperature = self.temperature_of(z_s, z_t, epoch)
        if isinstance(temperature, Tensor):
            self._last_temperature = temperature.detach().mean()
        z_t = self.mean_of_teachers(z_t, temperature)
        given = {"z_s": z_s, "z_t": z_t, "temperature": temperature, "target": target}
        given["index"] = index
        return self.response(**{k: v for k, v in given.items() if k in self._response_takes})


def _no_index(what: str) -> UserError:
    return UserError(
        f"{what} needs the position of each sample in the training set: batches must be "
        "kd_lightning.data.types.Batch(inputs, target, index), or dictionaries with 'index'"
    )


def _is_used(name: str, term: Any) -> bool:
    """Whether a term has a weight, or may get one."""
    if name in RESERVED or hasattr(nn.ModuleDict, name):
        raise UserError(f"method.transfer.{name}: this name is reserved, choose another")
    if not isinstance(term, Term):
        raise UserError(
            f"method.transfer.{name} is a {type(term).__name__}, not a transfer term: see "
            "kd_lightning.transfer"
        )
    return callable(term.weight) or term.weight != 0


def _weight(name: str, value: Any, what: str, most: float = math.inf) -> Schedule:
    wanted = "be at least 0" if most == math.inf else f"lie in 0…{most}"
    return _schedule(name, value, lambda weight: 0 <= weight <= most, f"{wanted} ({what})")


def _schedule(name: str, value: Any, fits: Callable[[float], bool], wanted: str) -> Schedule:
    """A number or a schedule, as a schedule whose values are checked at every call."""
    schedule = as_schedule(value)

    def checked(epoch: float) -> float:
        number = schedule(epoch)
        if not (isinstance(number, Real) and math.isfinite(number) and fits(float(number))):
            raise UserError(f"method.{name} must {wanted}, got {number}")
        return number

    checked(0.0)
    try:
        checked(math.inf)  # a bad end should show before a night of training, not after it
    except UserError:
        raise
    except (ArithmeticError, LookupError, ValueError):
        pass  # a user's own function need not be defined for ever
    return checked
