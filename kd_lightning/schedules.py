"""Values that change during training: temperature, alpha, and weights of terms.

A schedule is a function of the time trained so far, in epochs; 2.5 is the middle of the
third epoch. A temperature may also be learned, in opposition to the student (CTKD).
"""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.utils.errors import UserError

# Time in epochs, not steps: a schedule then keeps its meaning when the batch size, the
# gradient accumulation or the number of processes changes.
Schedule = Callable[[float], float]


def constant(value: float) -> Schedule:
    """Return the schedule that is always ``value``."""
    return lambda epoch: value


def linear(start: float, end: float, epochs: float) -> Schedule:
    """Interpolate linearly from ``start`` to ``end``, then stay at ``end``.

    Args:
        start: value at time 0.
        end: value from ``epochs`` on.
        epochs: duration, at least 0; with 0 the value is always ``end``.

    Raises:
        UserError: if ``epochs`` is negative or not a number.

    >>> linear(10, 2, epochs=4)(1.0)
    8.0
    """
    _check_epochs(epochs)
    return lambda epoch: start + (end - start) * _share(epoch, epochs)


def cosine(start: float, end: float, epochs: float) -> Schedule:
    """Interpolate from ``start`` to ``end`` along half a cosine, then stay at ``end``.

    Args:
        start: value at time 0.
        end: value from ``epochs`` on.
        epochs: duration, at least 0; with 0 the value is always ``end``.

    Raises:
        UserError: if ``epochs`` is negative or not a number.

    >>> round(cosine(10, 2, epochs=4)(2.0), 6)
    6.0
    """
    _check_epochs(epochs)
    return lambda epoch: end + (start - end) * (1 + math.cos(math.pi * _share(epoch, epochs))) / 2


def _check_epochs(epochs: float | None) -> None:
    # The configuration defaults to trainer.max_epochs, which is −1 or null for training
    # without end. "not >=" also catches NaN.
    if epochs is None or not epochs >= 0:
        raise UserError(f"a schedule needs a number of epochs ≥ 0, got {epochs}: set its epochs=")


def _share(epoch: float, epochs: float) -> float:
    # Clamped: values may be asked for after the end, e.g. at infinity to check them early.
    return min(epoch / epochs, 1.0) if epochs > 0 else 1.0


def as_schedule(value: float | Tensor | Schedule) -> Schedule:
    """Return a number, or a tensor of one, as a constant schedule, and a schedule unchanged."""
    if isinstance(value, Tensor):
        return constant(float(value) if value.numel() == 1 else math.nan)
    return value if callable(value) else constant(value)


def checked_schedule(name: str, value: Any, fits: Callable[[float], bool], wanted: str) -> Schedule:
    """Return a schedule that checks its value at every call, and now at its start and end.

    Args:
        name: of the setting, for the error.
        value: a number or a schedule.
        fits: whether a value is allowed.
        wanted: what is allowed, for the error, as in "be a positive number".

    Raises:
        UserError: if a value is not a finite number that fits.
    """
    schedule = as_schedule(value)

    def checked(epoch: float) -> float:
        number = schedule(epoch)
        if not (isinstance(number, Real) and math.isfinite(number) and fits(float(number))):
            raise UserError(f"method.{name} must {wanted}, got {number}")
        return number

    checked(0.0)
    if callable(value) and getattr(value, "__module__", "") != __name__:
        return checked  # a user's own function need not have a final value
    # The final value is checked before training, not after a night of it.
    checked(math.inf)
    return checked


def weight_schedule(name: str, value: Any, what: str, most: float = math.inf) -> Schedule:
    """Return a checked schedule of a weight from 0 to ``most``; ``what`` it weighs is named."""
    wanted = "be at least 0" if most == math.inf else f"lie in 0…{most}"
    return checked_schedule(name, value, lambda x: 0 <= x <= most, f"{wanted} ({what})")


class LearnedTemperature(nn.Module):
    r"""Global temperature :math:`T = lowest + span\,\sigma(\theta)`, learned adversarially (CTKD).

    The gradient that reaches θ is multiplied by −λ, so that one optimizer lowers the loss in
    the student's parameters and raises it in θ. λ grows from 0 to 1 along a cosine.

    Args:
        lowest: lower bound of T, above 0.
        span: upper bound of T minus the lower bound, above 0.
        start: initial θ.
        warm_up: epochs over which λ grows.

    Raises:
        UserError: if ``lowest`` or ``span`` is not positive.

    Source: Li et al. 2023, "Curriculum Temperature for Knowledge Distillation",
    arXiv 2211.16231.
    """

    # λ slows θ under SGD, as published. Under Adam it hardly matters: the size of Adam's steps
    # does not depend on the scale of the gradient.

    def __init__(
        self, lowest: float = 1.0, span: float = 20.0, start: float = 1.0, warm_up: float = 10.0
    ) -> None:
        super().__init__()
        for name, value in (("lowest", lowest), ("span", span)):
            if not value > 0:
                raise UserError(f"method.temperature.{name} must be positive, got {value}")
        self.lowest, self.span, self.start = lowest, span, start
        self.strength = cosine(0.0, 1.0, warm_up)
        self.theta = nn.Parameter(torch.tensor(float(start)))

    def build(self, num_classes: int) -> None:
        """Create the layers that depend on the number of classes C; none here."""

    def forward(self, z_s: Tensor, z_t: Tensor, epoch: float) -> Tensor:
        """Compute the temperature.

        Args:
            z_s: student's logits, B×C.
            z_t: teacher's logits, B×C.
            epoch: time trained so far, in epochs.

        Returns:
            A scalar, or B×1 with one temperature per sample.
        """
        # A sigmoid, because a clamped T would have no gradient outside its bounds.
        theta = reverse_gradient(self._theta(z_s, z_t), self.strength(epoch))
        return self.lowest + self.span * theta.sigmoid()

    def _theta(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        return self.theta


class LearnedTemperatures(LearnedTemperature):
    """Temperature per sample, from a small network on both logits (instance-wise CTKD).

    Args:
        hidden: units of the hidden layer.
        **settings: see :class:`LearnedTemperature`.
    """

    def __init__(self, hidden: int = 64, **settings: float) -> None:
        super().__init__(**settings)
        # Replaced by the network: a parameter without gradient makes DDP raise.
        del self.theta
        self.hidden = hidden

    def build(self, num_classes: int) -> None:
        last = nn.Linear(self.hidden, 1)
        # A zero weight: all samples start at the same, published temperature.
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, self.start)
        self.layers = nn.Sequential(nn.Linear(2 * num_classes, self.hidden), nn.ReLU(), last)

    def _theta(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        # Detached: otherwise the student could lower its loss by steering the temperature.
        z = torch.cat([z_s, z_t], dim=1).detach()
        # Cached logits of the teacher come in float32, also in training with bf16-true.
        return self.layers(z.to(next(self.layers.parameters()).dtype))


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Return ``x``, whose gradient is multiplied by ``-strength`` on the way back."""
    # In plain operations instead of an autograd.Function, so that torch.func and torch.compile
    # can differentiate it. The second summand is exactly 0.
    return x.detach() - strength * (x - x.detach())
