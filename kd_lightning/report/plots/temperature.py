"""Plots of the effect of the temperature, from ``temperature_curves`` in a run's diagnostics.

The columns are T, the entropy of the teacher's softmax, the norm of the gradient of KL with
respect to the student's logits, and the relative distance of T² times the gradient from its
limit for large T.
"""

from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from kd_lightning.report.plots.base import (
    COLORS,
    GREY,
    INK,
    TEACHER_COLOR,
    WIDE,
    Plot,
    legend,
    panels,
    ticks_at,
)

Array = np.ndarray[Any, Any]

HARD, UNIFORM = 0.05, 0.95  # fractions of the largest entropy that bound the useful range
TICKS = [0.1, 1, 10, 100, 1000]
LARGE = 10.0  # smallest T at which the asymptotic laws are drawn


def effect_of_temperature(curves: Array | None) -> list[Plot]:
    """Plot entropy, gradient and its limit against T; empty without curves."""
    if curves is None or curves.ndim != 2 or curves.shape[1] != 4 or not np.isfinite(curves).all():
        return []
    t, entropy, gradient, distance = curves.T
    figure, (left, middle, right) = panels(3, height=WIDE / 3.4)
    _entropy(left, t, entropy, most=float(entropy[-1]))
    _power_law(middle, t, gradient, -2, "KL", COLORS[1])
    middle.plot(t, t**2 * gradient, color=COLORS[0], label="T² · KL")
    middle.set(title="gradient of the response loss", ylabel="norm at the student's logits")
    _power_law(right, t, distance, -1, "T² · KL", COLORS[0])
    right.set(title="distance from regression on logits", ylabel="relative, of the gradients")
    for ax in (left, middle, right):
        ax.set(xscale="log", xlabel="temperature T")
        ticks_at(ax.xaxis, TICKS, [f"{tick:g}" for tick in TICKS])
        legend(ax)
    caption = (
        "Left: entropy of the teacher's softmax. Below the shaded range it is close to hard "
        "labels, above it close to uniform. Middle: the gradient of KL falls as 1/T²; the factor "
        "T² keeps the response loss in proportion to the hard loss. Right: with that factor, the "
        "gradient approaches the gradient of the squared distance between centred logits. Means "
        "over the validation data (Hinton, Vinyals, Dean 2015, §2)."
    )
    return [Plot("temperature", "Effect of the temperature", caption, figure)]


def _entropy(ax: Any, t: Array, entropy: Array, most: float) -> None:
    low, high = (np.interp(share * most, entropy, t) for share in (HARD, UNIFORM))
    ax.axvspan(low, high, color=TEACHER_COLOR, alpha=0.12, lw=0)
    ax.axhline(most, color=GREY, lw=0.8, ls="--", label="uniform")
    ax.plot(t, entropy, color=TEACHER_COLOR, label="teacher")
    ax.set(title="entropy of the teacher's softmax", ylabel="nats", ylim=(0, 1.15 * most))


def _power_law(ax: Any, t: Array, values: Array, power: int, name: str, color: str) -> None:
    """Plot a curve, and the power of T that it approaches for large T."""
    large = t >= LARGE
    ax.plot(t, values, color=color, label=name)
    law = f"1/T{'²' if power == -2 else ''}"
    # Anchored at the last point, because the law holds in the limit.
    ax.plot(t[large], values[-1] * (t[large] / t[-1]) ** power, ":", color=INK, label=law)
    ax.set(yscale="log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
