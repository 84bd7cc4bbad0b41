"""Training objective of a student: the weighted sum of all loss terms.

    L = (1 − α)·CE(z_s, y) + α·response(z_s, z_t) + Σ βᵢ·transferᵢ

For N rows and C classes, z_s and z_t are the logits of the student and the teacher, N×C;
with M teachers z_t is N×M×C. A row is a sample, or a token of a token classifier.
"""

import copy
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.data.types import UNLABELLED
from kd_lightning.losses.response import soft_targets
from kd_lightning.nets.ensemble import MEANS, Ensemble
from kd_lightning.nets.taps import Outputs
from kd_lightning.schedules import (
    LearnedTemperature,
    Schedule,
    checked_schedule,
    weight_schedule,
)
from kd_lightning.transfer.term import Rows, Term
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import Inputs
from kd_lightning.utils.partials import bare

log = logging.getLogger(__name__)

RESERVED = ("loss", "hard", "response")  # names that forward() returns beside transfer terms

Response = Callable[..., Tensor]


class Objective(nn.Module):
    """Weighted sum of the hard loss on the labels, the response loss, and transfer terms.

    Args:
        alpha: α, weight of the response loss in 0…1, a number or a schedule.
        temperature: T > 0 of the response loss: a number, a schedule, or learned. The
            response loss includes the factor T².
        response: the response loss; :func:`~kd_lightning.losses.soft_targets` by default. It
            receives those of ``z_s``, ``z_t``, ``temperature``, ``target`` and ``index`` that
            its signature names.
        hard_weight: weight of the hard loss; 1 − α by default. If given, α may be any number
            of at least 0.
        transfer: terms that compare layers, by name.
        ensemble: how several teachers are averaged: ``probabilities`` at T, or ``logits``.
        label_smoothing: fraction of each label that the hard loss spreads over all classes,
            in 0…1 (Szegedy et al. 2016, arXiv 1512.00567, §7).

    Raises:
        UserError: if a number is out of range, or an entry of ``transfer`` is not a term.

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
        # With an explicit hard_weight the two weights need not sum to one.
        most = 1 if hard_weight is None else math.inf
        self.alpha = weight_schedule("alpha", alpha, "weight of the response loss", most)
        self.temperature = _temperature(temperature)
        self.hard_weight = (
            (lambda epoch: 1 - self.alpha(epoch))
            if hard_weight is None
            else weight_schedule("hard_weight", hard_weight, "weight of the labels")
        )
        _check_options(ensemble, label_smoothing)
        self.mean_of_teachers, self.label_smoothing = MEANS[ensemble], label_smoothing
        self.response = bare(response)
        # Arguments are passed by name, so a user's loss declares only those that it uses.
        called = response.forward if isinstance(response, nn.Module) else response
        self._response_takes = set(inspect.signature(called).parameters)
        # A schedule that starts at 0 may rise later: only a constant 0 needs no teacher.
        self.uses_response = callable(alpha) or alpha > 0
        if isinstance(temperature, LearnedTemperature):
            self._check_that_it_learns()
        # A term of weight 0 is dropped: its adapters would get no gradient, and DDP raises on
        # trainable parameters without one.
        used = {k: t for k, t in _by_name(transfer).items() if _is_used(k, t)}
        self.transfer = nn.ModuleDict(used)
        self.weights = {
            name: weight_schedule(f"transfer.{name}.weight", term.weight, "weight of the term")
            for name, term in used.items()
        }
        self.is_constant = not any(map(callable, (alpha, temperature, hard_weight)))
        self.all_labelled = True  # set by the module: whether all training samples have a label
        self.has_layers = bool(used) or isinstance(temperature, LearnedTemperature)
        self.is_built = not self.has_layers
        self._last_temperature: Tensor | float = math.nan

    def _check_that_it_learns(self) -> None:
        """Reject a learned temperature that gets no gradient: DDP would raise."""
        if not self.uses_response or "temperature" not in self._response_takes:
            raise UserError(
                "a learned method.temperature needs method.alpha above 0 and a response that "
                "takes a temperature"
            )

    def with_values(
        self, alpha: Tensor | float, temperature: Tensor | float, hard_weight: Tensor | float
    ) -> "Objective":
        """Return this objective with fixed α, T and hard weight, which share everything else.

        Args:
            alpha: α; a number or a scalar tensor, like the others.
            temperature: T.
            hard_weight: weight of the hard loss.
        """
        # Tensors, so that torch.vmap can give each of several students values of its own.
        fixed = copy.copy(self)
        values: dict[str, Any] = {
            "alpha": alpha,
            "temperature": temperature,
            "hard_weight": hard_weight,
        }
        for name, value in values.items():
            setattr(fixed, name, lambda epoch, value=value: value)
        return fixed

    @property
    def needs_all_labels(self) -> str:
        """Name of the setting that needs the label of every sample; empty if none does."""
        if self.uses_response and "target" in self._response_takes:
            return "method.response"
        return next((f"method.transfer.{k}" for k, t in self.terms.items() if t.needs_labels), "")

    @property
    def needs_teacher(self) -> bool:
        """Whether any term of nonzero weight uses the teacher."""
        return self.uses_response or len(self.transfer) > 0

    @property
    def role(self) -> str:
        """Role of a run with this objective: ``student``, ``baseline`` or ``control: …``."""
        if not self.needs_teacher:
            return "control: label_smoothing" if self.label_smoothing else "baseline"
        # The decorator @control marks these losses, so no list of their names is kept here.
        function = getattr(self.response, "func", self.response)
        control = getattr(function, "control", "") if self.uses_response else ""
        return f"control: {control}" if control else "student"

    @property
    def terms(self) -> dict[str, Term]:
        """Transfer terms by name."""
        return {k: t for k, t in self.transfer.items() if isinstance(t, Term)}

    @property
    def student_paths(self) -> list[str]:
        """Paths of the student's layers that the terms compare."""
        return sorted({path for term in self.terms.values() for path in term.student})

    @property
    def teacher_paths(self) -> list[str]:
        """Paths of the teacher's layers that the terms compare."""
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
        """Create what depends on networks and data: adapters and learned temperatures.

        Args:
            student: the network in training.
            teacher: the frozen network.
            sample: a batch of inputs of any content.
            classes: number of classes, C.
            labels: class of each training row, N, for terms that need them.
            rows: selects the rows with a target from a layer's output; all by default.

        Raises:
            UserError: if a term's layers do not exist or do not fit it, if it needs labels and
                there are none, or if a setting does not work with several teachers.
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
            # A term does not know its own name, which the user needs to find the option.
            except UserError as error:
                raise UserError(f"method.transfer.{name}: {error}") from error
            if term.lr is not None and not list(term.parameters()):
                log.warning("method.transfer.%s.lr has no effect: it has no layers to learn", name)
        self.is_built = True

    def _check_what_is_asked_of_several(self) -> None:
        for name, term in self.terms.items():
            if not term.teacher:
                raise UserError(
                    f"method.transfer.{name}: with several teachers, name the layer to compare, "
                    f"as in method.transfer.{name}.teacher=members.0.…"
                )
        learned = isinstance(self.temperature, LearnedTemperature)
        if learned and self.mean_of_teachers is not MEANS["logits"]:
            # The mean of probabilities depends on T, but losses detach the teacher's logits:
            # that part of the gradient of T would be lost.
            raise UserError(
                "with several teachers, a learned method.temperature needs the mean of their "
                "logits: set method.ensemble=logits"
            )

    def settings(self, epoch: float) -> dict[str, float]:
        """Return α, T and the terms' weights at an epoch, to be logged with the losses."""
        learned = isinstance(self.temperature, LearnedTemperature)
        # A learned temperature may depend on the batch: the mean of the last one is reported.
        temperature = self._last_temperature if learned else self.temperature(epoch)
        weights = {f"weight_{name}": weight(epoch) for name, weight in self.weights.items()}
        return {"alpha": self.alpha(epoch), "temperature": float(temperature), **weights}

    def term_weights(self, epoch: float) -> dict[str, float]:
        """Return the weight of each term at an epoch, by name."""
        response = {"response": self.alpha(epoch)} if self.uses_response else {}
        others = {name: weight(epoch) for name, weight in self.weights.items()}
        return {"hard": self.hard_weight(epoch), **response, **others}

    def temperature_of(self, z_s: Tensor, z_t: Tensor, epoch: float) -> float | Tensor:
        """Return T for a batch of logits: a number, a scalar, or N×1 with one value per row."""
        if isinstance(self.temperature, LearnedTemperature):
            return self.temperature(z_s, self.mean_of_teachers(z_t, 1.0), epoch)
        return self.temperature(epoch)

    def _hard_loss(self, z_s: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross entropy of the rows that have a label; 0 if none has one."""
        smoothing = self.label_smoothing
        if self.all_labelled:
            return F.cross_entropy(z_s, target, label_smoothing=smoothing)
        total = F.cross_entropy(z_s, target, label_smoothing=smoothing, reduction="sum")
        return total / (target != UNLABELLED).sum().clamp_min(1)

    def forward(
        self,
        student: Outputs,
        teacher: Outputs | None,
        target: Tensor,
        index: Tensor | None = None,
        epoch: float = 0.0,
    ) -> dict[str, Tensor]:
        """Compute the unweighted terms and their weighted sum.

        Args:
            student: ``logits``, N×C, and the layers at :attr:`student_paths`.
            teacher: ``logits``, N×C or N×M×C, and the layers at :attr:`teacher_paths`;
                may be None if no term needs them.
            target: classes, N; −100 for rows without a label, which the hard loss leaves out.
            index: positions of the rows in the training set, N, for terms that keep a memory
                bank.
            epoch: epochs trained so far; 2.5 is the middle of the third epoch.

        Returns:
            Scalars by the name of the term, and the weighted sum as ``loss``.

        Raises:
            UserError: if a term needs the index and there is none.
        """
        weights = self.term_weights(epoch)
        z_s = student["logits"]
        # Computed at weight 0, too: its curve shows whether the student still fits the labels.
        terms = {"hard": self._hard_loss(z_s, target)}
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
        # In mutual learning the teacher is another student, whose logits carry a graph.
        z_t = teacher["logits"].detach()
        if z_t.shape[-1] != z_s.shape[-1]:
            raise UserError(
                f"the student predicts {z_s.shape[-1]} classes and the teacher {z_t.shape[-1]}: a "
                "response loss compares class by class, so they must be equal"
            )
        temperature = self.temperature_of(z_s, z_t, epoch)
        if isinstance(temperature, Tensor):
            self._last_temperature = temperature.detach().mean()
        z_t = self.mean_of_teachers(z_t, temperature)
        given = {"z_s": z_s, "z_t": z_t, "temperature": temperature, "target": target}
        given["index"] = index
        return self.response(**{k: v for k, v in given.items() if k in self._response_takes})


def _temperature(value: Any) -> Schedule | LearnedTemperature:
    if isinstance(value, LearnedTemperature):
        return value
    # Outside of this range T² or z/T leave that of float32.
    wanted = "be a positive number in 1e-15…1e15"
    return checked_schedule("temperature", value, lambda t: 1e-15 <= t <= 1e15, wanted)


def _check_options(ensemble: str, label_smoothing: float) -> None:
    if ensemble not in MEANS:
        raise UserError(f"method.ensemble must be one of {', '.join(MEANS)}, got {ensemble}")
    if not 0 <= label_smoothing <= 1:
        raise UserError(f"method.label_smoothing must lie in 0…1, got {label_smoothing}")


def _no_index(what: str) -> UserError:
    return UserError(
        f"{what} needs the position of each sample in the training set: pass batches as "
        "kd_lightning.data.types.Batch(inputs, target, index), or as dictionaries with 'index'"
    )


def _by_name(transfer: Any) -> Mapping[str, Any]:
    if transfer is None or isinstance(transfer, Mapping):
        return transfer or {}
    raise UserError(
        "transfer= takes a dictionary of terms by name, as in {'hint': FitNet()}, not a "
        f"{type(transfer).__name__}"
    )


def _is_used(name: str, term: Any) -> bool:
    """Return whether a term's weight is, or may become, nonzero."""
    if name in RESERVED or hasattr(nn.ModuleDict, name) or "." in name:
        raise UserError(
            f"method.transfer.{name}: this name is reserved or contains a dot, choose another"
        )
    if not isinstance(term, Term):
        raise UserError(
            f"method.transfer.{name} is a {type(term).__name__}, not a transfer term: see "
            "kd_lightning.transfer"
        )
    return callable(term.weight) or term.weight != 0
