"""Numbers that change while a student trains: temperature, alpha, weights of terms.

A schedule is a function of the time trained so far, in epochs: 2.5 is the middle of the
third. Temperatures may also be learned, against the student (CTKD).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kd_lightning.utils.errors import UserError

Schedule = Callable[[float], float]


def constant(value: float) -> Schedule:
    """The same value at all times."""
    return lambda epoch: value


def linear(start: float, end: float, epochs: float) -> Schedule:
    """From ``start`` to ``end`` in a straight line over a number of epochs; then ``end``.

    Raises:
        UserError: if ``epochs`` is no number from 0, as where training has no last epoch.

    >>> linear(10, 2, epochs=4)(1.0)
    8.0
    """
    _check_epochs(epochs)
    return lambda epoch: start + (end - start) * _share(epoch, epochs)


def cosine(start: float, end: float, epochs: float) -> Schedule:
    """From ``start`` to ``end`` along half a cosine over a number of epochs; then ``end``.

    Raises:
        UserError: if ``epochs`` is no number from 0.

    >>> round(cosine(10, 2, epochs=4)(2.0), 6)
    6.0
    """
    _check_epochs(epochs)
    return lambda epoch: end + (start - end) * (1 + math.cos(math.pi * _share(epoch, epochs))) / 2


def _check_epochs(epochs: float | None) -> None:
    if epochs is None or not epochs >= 0:  # max_epochs=-1, or NaN
        raise UserError(f"a schedule needs to know its epochs (…epochs=20), got {epochs}")


def _share(epoch: float, epochs: float) -> float:
    return min(epoch / epochs, 1.0) if epochs > 0 else 1.0


def as_schedule(value: float | Schedule) -> Schedule:
    """A number as the schedule that keeps it."""
    return value if callable(value) else constant(value)


class LearnedTemperature(nn.Module):
    r"""One temperature :math:`T = lowest + span\,\sigma(\theta)`, learned *against* the student.

    The gradient that reaches θ is multiplied by −λ, so that the optimizer that lowers the
    loss for the student raises it for the temperature. λ grows from 0 to 1 by a cosine; that
    slows θ under SGD, as published, but not under Adam, which takes steps of one size
    whatever the scale of the gradient.

    Args:
        lowest: of the temperatures that can be reached.
        span: the highest is ``lowest + span``.
        start: θ at the beginning.
        warm_up: epochs over which λ grows.

    Raises:
        UserError: if ``lowest`` or ``span`` is not positive.

    Source: Li et al. 2023, "Curriculum Temperature for Knowledge Distillation",
    arXiv 2211.16231.
    """

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
        """Make what depends on the data; nothing for one temperature."""

    def forward(self, z_s: Tensor, z_t: Tensor, epoch: float) -> Tensor:
        """The temperature, a scalar, or B×1 where each sample has its own."""
        theta = reverse_gradient(self._theta(z_s, z_t), self.strength(epoch))
        return self.lowest + self.span * theta.sigmoid()

    def _theta(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        return self.theta


class LearnedTemperatures(LearnedTemperature):
    """A temperature for each sample, from a small network on both logits (CTKD, instance-wise).

    Args:
        hidden: units of its one hidden layer.
        **settings: see :class:`LearnedTemperature`.
    """

    def __init__(self, hidden: int = 64, **settings: float) -> None:
        super().__init__(**settings)
        del self.theta
        self.hidden = hidden

    def build(self, num_classes: int) -> None:
        last = nn.Linear(self.hidden, 1)
        nn.init.zeros_(last.weight)  # all samples begin at the same temperature
        nn.init.constant_(last.bias, self.start)
        self.layers = nn.Sequential(nn.Linear(2 * num_classes, self.hidden), nn.ReLU(), last)

    def _theta(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        return self.layers(torch.cat([z_s, z_t], dim=1).detach())


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """``x`` itself, whose gradient comes back multiplied by ``-strength``."""
    return x.detach() - strength * (x - x.detach())
