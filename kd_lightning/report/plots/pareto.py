"""Plots of the test accuracy of exported files against their time and size."""

from collections.abc import Callable
from typing import Any

from kd_lightning.report.compare import Report, Row
from kd_lightning.report.exported import Point
from kd_lightning.report.plots.base import (
    GREY,
    TEACHER_COLOR,
    Plot,
    colors_of,
    label_of,
    legend,
    log_axis,
    panels,
    pareto_front,
    percent_axis,
    series_of,
    student_columns,
)
from kd_lightning.report.statistics import MIN_SEEDS
from kd_lightning.report.table import file_size

SHAPES = "osD^v"  # of formats, in turn; int8 is hollow
BARS = (
    f"Test accuracy of the files in their own runtimes; bars are 95 % intervals over {MIN_SEEDS} "
    "seeds or more. Choose settings by validation accuracy instead."
)


def plots(report: Report) -> list[Plot]:
    """Plot accuracy against time, if all was measured on one machine, and against size."""
    exported = report.exported
    if not exported.students or len(exported.students + exported.teachers) < 2:
        return []
    found = []
    if exported.have_one_machine:
        figure = _figure(report, lambda point: point.ms, "ms for one image", lambda ms: f"{ms:g}")
        caption = (
            f"{BARS} Times are medians, on one thread of {exported.cpus[0]}. No student is both "
            "faster and better than one on the Pareto front; differences of a few percent in "
            "time are noise."
        )
        found.append(Plot("pareto_time", "Accuracy against time for one image", caption, figure))
    figure = _figure(report, lambda point: point.bytes, "size of the file", file_size)
    caption = f"{BARS} No student is both smaller and better than one on the Pareto front."
    return [*found, Plot("pareto_bytes", "Accuracy against size of the file", caption, figure)]


def _figure(
    report: Report, x: Callable[[Point], float], label: str, text: Callable[[float], str]
) -> Any:
    exported = report.exported
    figure, (ax,) = panels(1)
    files = [*exported.students, *exported.teachers]
    forms = list(dict.fromkeys(point.form for point in files))
    shapes = {form: SHAPES[i % len(SHAPES)] for i, form in enumerate(forms)}
    for name, color, points in _series(report):
        for point in points:
            _draw(ax, point, x(point), color, shapes[point.form])
        # The legend shows colours and markers apart: together they would be too many.
        ax.plot([], [], color=color, lw=4, label=name)
    for point in exported.teachers:
        _draw(ax, point, x(point), TEACHER_COLOR, shapes[point.form], size=9)
    if exported.teachers:
        ax.plot([], [], color=TEACHER_COLOR, lw=4, label="teacher")
    for name, point in {point.name: point for point in files}.items():
        fill = "none" if point.int8 else GREY
        ax.plot([], [], shapes[point.form], color=GREY, markerfacecolor=fill, label=name)
    pareto_front(ax, [(x(point), point.accuracy.mean) for point in exported.students])
    ax.margins(0.08)
    log_axis(ax, text)
    percent_axis(ax.yaxis)
    ax.set(xlabel=label, ylabel="test accuracy")
    legend(ax)
    return figure


def _series(report: Report) -> list[tuple[str, str, list[Point]]]:
    """Return name, colour and points of each series: groups that differ in their size only."""
    points: dict[Any, list[Point]] = {}
    for point in report.exported.students:
        points.setdefault(point.group, []).append(point)
    rows = [row for row in report.rows if row.group in points]
    students = student_columns(report)

    def name(row: Row) -> str:
        return label_of(row, report, without=students) or "student"

    series = series_of(rows, name)
    colors = colors_of([*series.values()])
    return [
        (label, color, [point for row in part for point in points[row.group]])
        for (label, part), color in zip(series.items(), colors, strict=True)
    ]


def _draw(ax: Any, point: Point, x: float, color: str, shape: str, size: float = 6) -> None:
    accuracy = point.accuracy
    bars = None
    if accuracy.n >= MIN_SEEDS and accuracy.low is not None and accuracy.high is not None:
        # Intervals of Student's t are symmetric and may exceed the range of a share.
        ends = max(accuracy.low, 0.0), min(accuracy.high, 1.0)
        bars = [[accuracy.mean - ends[0]], [ends[1] - accuracy.mean]]
    ax.errorbar(
        [x],
        [accuracy.mean],
        yerr=bars,
        fmt=shape,
        color=color,
        markersize=size,
        markerfacecolor="none" if point.int8 else color,
        elinewidth=1,
    )
