"""The picture of what a temperature does, from ``temperature_curves`` of a run's evidence.

Its columns are T, the entropy of the teacher's answers, the norm of the gradient of KL at
the student's logits, and the relative distance of T² times that gradient from its limit.
"""

from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from kd_lightning.report.pictures import COLORS, GREY, INK, WIDE, Picture, legend, log_axis, panels

Array = np.ndarray[Any, Any]

NO_OPINION, SURE = 0.95, 0.05  # shares of the largest entropy, where regimes begin and end
TICKS = [0.1, 1, 10, 100, 1000]
LATE = 10.0  # from this T on a law for large T is drawn


def what_temperature_does(curves: Array | None) -> list[Picture]:
    """Entropy, gradient and limit against T; nothing where there are no such curves."""
    if curves is None or curves.ndim != 2 or curves.shape[1] != 4 or not np.isfinite(curves).all():
        return []
    t, entropy, gradient, distance = curves.T
    figure, (left, middle, right) = panels(3, height=WIDE / 3.4)
    _regimes(left, t, entropy, most=float(entropy[-1]))
    _law(middle, t, gradient, -2, "KL", COLORS[1])
    middle.plot(t, t**2 * gradient, color=COLORS[0], label="T² · KL")
    middle.set(title="gradient of the soft term", ylabel="norm at the student's logits")
    _law(right, t, distance, -1, "T² · KL", COLORS[0])
    right.set(title="distance from regression on logits", ylabel="relative, of the gradients")
    for ax in (left, middle, right):
        ax.set(xscale="log", xlabel="temperature T")
        log_axis(ax.xaxis, TICKS, [f"{tick:g}" for tick in TICKS])
        legend(ax)
    caption = (
        "Left: the entropy of the teacher's answers; below the shaded range they are hard labels, "
        "above it no opinion, and in between lies what can be learnt beyond the label. Middle: "
        "the gradient of KL falls as 1/T², so without the factor T² the teacher would fall silent "
        "beside the labels. Right: with it the gradient tends to that of centred logits, squared. "
        "Means over the validation data (Hinton, Vinyals, Dean 2015, §2)."
    )
    return [Picture("temperature_theory", "What the temperature does", caption, figure)]


def _regimes(ax: Any, t: Array, entropy: Array, most: float) -> None:
    low, high = (np.interp(share * most, entropy, t) for share in (SURE, NO_OPINION))
    ax.axvspan(low, high, color=COLORS[3], alpha=0.12, lw=0)
    ax.axhline(most, color=GREY, lw=0.8, ls="--", label="no opinion")
    ax.plot(t, entropy, color=COLORS[3], label="teacher")
    ax.set(title="entropy of the teacher's answers", ylabel="nats", ylim=(0, 1.15 * most))


def _law(ax: Any, t: Array, values: Array, power: int, name: str, color: str) -> None:
    """A curve, and the power of T that it follows for large T."""
    late = t >= LATE
    ax.plot(t, values, color=color, label=name)
    law = f"1/T{'²' if power == -2 else ''}"
    ax.plot(t[late], values[-1] * (t[late] / t[-1]) ** power, ":", color=INK, label=law)
    ax.set(yscale="log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
