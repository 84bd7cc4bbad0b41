"""Plots of validation accuracy against temperature, α, and size.

Readers choose settings from these plots, so they never show test data.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from kd_lightning.metrics.figures import with_unit
from kd_lightning.report.compare import VAL, Report, Row
from kd_lightning.report.plots.base import (
    COLORS,
    GREY,
    TEACHER_COLOR,
    Plot,
    baseline_name,
    colors_of,
    label_of,
    legend,
    log_axis,
    mean_of,
    panels,
    pareto_front,
    percent_axis,
    series_of,
    student_columns,
    ticks_at,
)
from kd_lightning.report.table import percents
from kd_lightning.report.verdicts import teacher_name

T, ALPHA = "method.temperature", "method.alpha"
AXES = {T: "temperature T", ALPHA: "weight α of the response loss"}
BARS = "Bars are one standard deviation over seeds."
MOST_PANELS = 4  # heat maps side by side whose cells are wide enough for their numbers


def temperature_and_alpha(report: Report) -> list[Plot]:
    """Draw a heat map if both were swept, else a line plot of the one that was."""
    swept = [key for key in (T, ALPHA) if key in report.columns]
    if len(swept) == 2 and (found := _heat_maps(report)):
        return [found]
    return [plot for key in swept if (plot := _lines(report, key))]


def _heat_maps(report: Report) -> Plot | None:
    rows = [row for row in report.rows if _has(row, T, ALPHA)]
    parts = series_of(rows, lambda row: label_of(row, report, without=(T, ALPHA)))
    shown = {name: part for name, part in parts.items() if _is_grid(part)}
    shown = dict(list(shown.items())[:MOST_PANELS])
    if not shown:
        return None
    means = [mean_of(row) for part in shown.values() for row in part]
    figure, axes = panels(len(shown))
    image: Any = None
    # One colour scale for all panels, so one colour bar serves them all.
    for ax, (name, part) in zip(axes, shown.items(), strict=True):
        image = _heat_map(ax, part, min(means), max(means))
        ax.set(title=name, xlabel=AXES[T], ylabel=AXES[ALPHA] if ax is axes[0] else "")
    bar = figure.colorbar(image, ax=axes)
    percent_axis(bar.ax.yaxis)
    alone = [with_unit(row.val.mean, "%") for row in report.rows if row.is_baseline and row.val]
    baseline = f" {baseline_name(report).capitalize()}: {', '.join(alone)}." if alone else ""
    caption = f"Mean validation accuracy over seeds, in percent.{baseline}"
    return Plot("temperature_alpha", "Accuracy against temperature and α", caption, figure)


def _is_grid(rows: list[Row]) -> bool:
    return all(len({_setting(row, key) for row in rows}) > 1 for key in (T, ALPHA))


def _heat_map(ax: Any, rows: list[Row], low: float, high: float) -> Any:
    at = {key: sorted({_setting(row, key) for row in rows}) for key in (T, ALPHA)}
    cells = np.full((len(at[ALPHA]), len(at[T])), np.nan)  # NaN where a combination was not run
    for row in rows:
        place = (at[ALPHA].index(_setting(row, ALPHA)), at[T].index(_setting(row, T)))
        cells[place] = mean_of(row)
    image = ax.imshow(cells, cmap="viridis", origin="lower", aspect="auto", vmin=low, vmax=high)
    for (i, j), share in np.ndenumerate(cells):
        if np.isfinite(share):
            # Viridis is bright at its upper end.
            color = "black" if share > (low + high) / 2 else "white"
            ax.text(j, i, percents(share), ha="center", va="center", color=color)
    ax.set_xticks(range(len(at[T])), [f"{t:g}" for t in at[T]])
    ax.set_yticks(range(len(at[ALPHA])), [f"{a:g}" for a in at[ALPHA]])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return image


def _lines(report: Report, key: str) -> Plot | None:
    # Baselines have no temperature, but α = 0 is a point of the curve over α.
    rows = [row for row in report.rows if _has(row, key)]
    series = series_of(rows, lambda row: label_of(row, report, without=(key,)))
    series = {k: v for k, v in series.items() if len({_setting(row, key) for row in v}) > 1}
    if not series:
        return None
    figure, (ax,) = panels(1)
    for name, part in list(series.items())[: len(COLORS)]:
        ax.errorbar(*_points(part, lambda row: _setting(row, key)), marker="o", label=name)
    baselines = [row for row in report.rows if row.is_baseline and row.val]
    if key == T and len(baselines) == 1:
        ax.axhline(mean_of(baselines[0]), color=GREY, ls="--", label=baseline_name(report))
    ticks = sorted({_setting(row, key) for part in series.values() for row in part})
    if ticks[0] > 0 and ticks[-1] / ticks[0] >= 8:
        ax.set_xscale("log")  # values over such a range are usually spaced by ratios: 1, 2, 5, 10
    ticks_at(ax.xaxis, ticks, [f"{tick:g}" for tick in ticks])
    percent_axis(ax.yaxis)
    ax.set(xlabel=AXES[key], ylabel="validation accuracy")
    legend(ax)
    name = "temperature" if key == T else "α"
    return Plot(f"accuracy_{key.partition('.')[2]}", f"Accuracy against {name}", BARS, figure)


def size(report: Report) -> list[Plot]:
    """Plot accuracy against the number of parameters, if the students differ in it."""
    rows = [row for row in report.rows if row.val and row.group.scores("parameters")]
    if len({_parameters(row) for row in rows}) < 2:
        return []
    students = student_columns(report)
    series = series_of(rows, lambda row: label_of(row, report, without=students) or "student")
    figure, (ax,) = panels(1)
    for (name, part), color in zip(series.items(), colors_of([*series.values()]), strict=True):
        ax.errorbar(*_points(part, _parameters), marker="o", label=name, color=color)
    for teacher in report.teachers:
        place = [s.mean for name in ("parameters", VAL) if (s := teacher.summary(name))]
        if len(place) == 2:
            name = teacher_name(teacher, report)
            ax.plot(*place, "*", color=TEACHER_COLOR, markersize=12, label=name)
    pareto_front(ax, [(_parameters(row), mean_of(row)) for row in rows])
    log_axis(ax, _count)
    percent_axis(ax.yaxis)
    ax.set(xlabel="parameters", ylabel="validation accuracy")
    legend(ax)
    caption = f"{BARS} No student is both smaller and better than one on the Pareto front."
    return [Plot("size", "Accuracy against size", caption, figure)]


def _points(
    rows: Sequence[Row], x: Callable[[Row], float]
) -> tuple[list[float], list[float], list[float]]:
    """Return the points of a series from left to right, and half the lengths of their bars."""
    rows = sorted(rows, key=x)
    bars = [row.val.sd or 0.0 if row.val else 0.0 for row in rows]
    return [x(row) for row in rows], [mean_of(row) for row in rows], bars


def _has(row: Row, *keys: str) -> bool:
    return row.val is not None and all(row.group.setting(key) is not None for key in keys)


def _setting(row: Row, key: str) -> float:
    found = row.group.setting(key)
    assert found is not None
    return found


def _parameters(row: Row) -> float:
    return fmean(row.group.scores("parameters").values())


def _count(number: float) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:g}{name}"
    return f"{number:g}"
