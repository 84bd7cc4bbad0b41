"""Pictures of accuracy: against temperature and α, against size, and while training.

All are about validation, since they invite to choose.
"""

import csv
from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import fmean, stdev
from typing import Any

import numpy as np

from kd_lightning.report.compare import VAL, Report, Row
from kd_lightning.report.groups import is_learning
from kd_lightning.report.pictures import (
    COLORS,
    GREY,
    Picture,
    legend,
    log_axis,
    panels,
    percent_axis,
)
from kd_lightning.report.read import Run, finite
from kd_lightning.report.settings import is_taught
from kd_lightning.report.words import teacher_name
from kd_lightning.utils.errors import UserError

T, ALPHA = "method.temperature", "method.alpha"
NAMES = {T: "temperature T", ALPHA: "weight α of the teacher's answers"}
MOST_CURVES = 6  # before nobody can tell them apart
BARS = "Bars are one standard deviation over seeds."

Series = dict[str, list[Row]]


def temperature_and_alpha(report: Report) -> list[Picture]:
    """A heat map where both were swept, else a line for what was."""
    swept = [key for key in (T, ALPHA) if key in report.columns]
    if len(swept) == 2 and (found := _heat_map(report)):
        return [found]
    return [picture for key in swept if (picture := _lines(report, key))]


def _heat_map(report: Report) -> Picture | None:
    rows = [r for r in report.rows if _has(r, T, ALPHA) and is_taught(r.group.first)]
    parts = _split(rows, lambda row: _label(row, report, without=(T, ALPHA)))
    shown = {name: part for name, part in list(parts.items())[:4] if _is_grid(part)}
    if not shown:
        return None
    means = [row.val.mean for part in shown.values() for row in part if row.val]
    figure, axes = panels(len(shown))
    image: Any = None
    for ax, (name, part) in zip(axes, shown.items(), strict=True):
        image = _grid(ax, part, min(means), max(means))
        ax.set(title=name, xlabel=NAMES[T], ylabel=NAMES[ALPHA] if ax is axes[0] else "")
    bar = figure.colorbar(image, ax=axes)
    percent_axis(bar.ax.yaxis)
    alone = [f"{100 * r.val.mean:.2f} %" for r in report.rows if r.is_control and r.val]
    control = f" {report.control.capitalize()}: {', '.join(alone)}." if alone else ""
    caption = f"Mean validation accuracy in percent over seeds.{control}"
    return Picture("temperature_alpha", "Accuracy against temperature and α", caption, figure)


def _is_grid(rows: list[Row]) -> bool:
    return all(len({row.group.setting(key) for row in rows}) > 1 for key in (T, ALPHA))


def _grid(ax: Any, rows: list[Row], low: float, high: float) -> Any:
    at = {key: sorted({_setting(row, key) for row in rows}) for key in (T, ALPHA)}
    cells = np.full((len(at[ALPHA]), len(at[T])), np.nan)
    for row in rows:
        if row.val:
            place = (at[ALPHA].index(_setting(row, ALPHA)), at[T].index(_setting(row, T)))
            cells[place] = row.val.mean
    image = ax.imshow(cells, cmap="viridis", origin="lower", aspect="auto", vmin=low, vmax=high)
    for (i, j), share in np.ndenumerate(cells):
        if np.isfinite(share):
            color = "black" if share > (low + high) / 2 else "white"
            ax.text(j, i, f"{100 * share:.2f}", ha="center", va="center", color=color)
    ax.set_xticks(range(len(at[T])), [f"{t:g}" for t in at[T]])
    ax.set_yticks(range(len(at[ALPHA])), [f"{a:g}" for a in at[ALPHA]])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return image


def _lines(report: Report, key: str) -> Picture | None:
    # without a teacher's answers a temperature says nothing, but α = 0 is a point of its line
    rows = [r for r in report.rows if _has(r, key)]
    rows = [r for r in rows if key == ALPHA or is_taught(r.group.first)]
    series = _split(rows, lambda row: _label(row, report, without=(key,)))
    series = {k: v for k, v in series.items() if len({_setting(r, key) for r in v}) > 1}
    if not series:
        return None
    figure, (ax,) = panels(1)
    for name, part in list(series.items())[: len(COLORS)]:
        part = sorted(part, key=lambda row: _setting(row, key))
        x, y, bars = _points(part, lambda row: _setting(row, key))
        ax.errorbar(x, y, bars, marker="o", label=name)
    controls = [r for r in report.rows if r.is_control and r.val and key == T]
    for row in controls[:1] if len(controls) == 1 else []:
        ax.axhline(row.val.mean if row.val else 0, color=GREY, ls="--", label=report.control)
    ticks = sorted({_setting(row, key) for part in series.values() for row in part})
    if ticks[0] > 0 and ticks[-1] / ticks[0] >= 8:
        ax.set_xscale("log")
    log_axis(ax.xaxis, ticks, [f"{tick:g}" for tick in ticks])
    percent_axis(ax.yaxis)
    ax.set(xlabel=NAMES[key], ylabel="validation accuracy")
    legend(ax)
    word = "temperature" if key == T else "α"
    return Picture(f"accuracy_{key[7:]}", f"Accuracy against {word}", BARS, figure)


def size(report: Report) -> list[Picture]:
    """Accuracy against the number of parameters, where there are several sizes."""
    rows = [row for row in report.rows if row.val and row.group.scores("parameters")]
    if len({_parameters(row) for row in rows}) < 2:
        return []
    series = _split(rows, lambda row: _label(row, report, only_learning=True) or "student")
    figure, (ax,) = panels(1)
    for (name, part), color in zip(series.items(), _colors(list(series.values())), strict=True):
        part = sorted(part, key=_parameters)
        x, y, bars = _points(part, _parameters)
        ax.errorbar(x, y, bars, marker="o", label=name, color=color)
    for teacher in report.teachers:
        at = [teacher.summary(name) for name in ("parameters", VAL)]
        place = [summary.mean for summary in at if summary]
        if len(place) == 2:
            name = teacher_name(teacher, report)
            ax.plot(*place, "*", color=COLORS[3], markersize=12, label=name)
    _front(ax, rows)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ticks = [d * 10.0**e for e in range(13) for d in (1, 2, 5) if low <= d * 10.0**e <= high]
    ticks = ticks if len(ticks) < 8 else [t for t in ticks if str(t)[0] == "1"]
    log_axis(ax.xaxis, ticks, [_count(tick) for tick in ticks])
    percent_axis(ax.yaxis)
    ax.set(xlabel="parameters", ylabel="validation accuracy")
    legend(ax)
    caption = f"{BARS} No student is both smaller and better than those on the Pareto front."
    return [Picture("size", "Accuracy against size", caption, figure)]


def _front(ax: Any, rows: list[Row]) -> None:
    best, front = -1.0, []
    for row in sorted(rows, key=lambda r: (_parameters(r), -_mean(r))):
        if _mean(row) > best:
            best = _mean(row)
            front.append((_parameters(row), best))
    steps = [*front, (max(map(_parameters, rows)), best)]
    ax.step(*zip(*steps, strict=True), where="post", color=GREY, ls=":", label="Pareto front")


def learning_curves(report: Report) -> list[Picture]:
    """Validation accuracy by epoch; the best groups where there are too many to tell apart."""
    found = [(row, _by_epoch(row)) for row in report.rows]
    found = [(row, curve) for row, curve in found if any(len(v) for v in curve.values())]
    if not any(len(curve) > 1 for _, curve in found):
        return []  # single points are in the table
    lead = report.lead
    rank = lambda row: (lead is not None and row.group is lead.control, _mean(row))  # noqa: E731
    kept = sorted((row for row, _ in found), key=rank, reverse=True)[:MOST_CURVES]
    shown = [(row, curve) for row, curve in found if row in kept]
    figure, (ax,) = panels(1)
    dashes = cycle(("-", "--", ":", "-."))  # controls are all grey
    for (row, curve), color in zip(shown, _colors([[r] for r, _ in shown]), strict=True):
        line = {"color": color, "ls": next(dashes) if row.is_control else "-"}
        _band(ax, curve, label=row.group.label, **line)
    percent_axis(ax.yaxis)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="epoch", ylabel="validation accuracy")
    legend(ax)
    caption = "Means over seeds; bands are one standard deviation."
    if len(shown) < len(found):
        caption += (
            f" The best {len(shown)} of {len(found)} groups, the best one's control included."
        )
    return [Picture("learning_curves", "Learning curves", caption, figure)]


def _band(ax: Any, curve: dict[int, list[float]], **line: Any) -> None:
    epochs = np.array(sorted(curve)) + 1
    means = np.array([fmean(curve[e - 1]) for e in epochs])
    spread = np.array([_spread(curve[e - 1]) for e in epochs])
    ax.plot(epochs, means, marker="o" if len(epochs) < 15 else "", **line)
    ax.fill_between(epochs, means - spread, means + spread, color=line["color"], alpha=0.16, lw=0)


def _by_epoch(row: Row) -> dict[int, list[float]]:
    """Scores of all seeds by epoch."""
    found: dict[int, list[float]] = {}
    for run in row.group.runs.values():
        for epoch, score in _curve(run).items():
            found.setdefault(epoch, []).append(score)
    return found


def _curve(run: Run) -> dict[int, float]:
    """Validation accuracy by epoch; of a resumed epoch the later one."""
    file = run.path / "metrics.csv"
    if not file.is_file():
        return {}
    last = run.number("epochs") or float("inf")  # the best epoch is evaluated again at the end
    try:
        with file.open(newline="") as lines:
            rows = [(row.get("epoch"), row.get(VAL)) for row in csv.DictReader(lines)]
        found = {int(float(epoch)): float(score) for epoch, score in rows if epoch and score}
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    return {e: s for e, s in found.items() if e < last and finite(s) is not None}


def _points(
    rows: Sequence[Row], x: Callable[[Row], float]
) -> tuple[list[float], list[float], list[float]]:
    """Where the points lie, and the half lengths of their bars."""
    bars = [row.val.sd or 0.0 if row.val else 0.0 for row in rows]
    return [x(row) for row in rows], [_mean(row) for row in rows], bars


def _split(rows: Sequence[Row], name: Callable[[Row], str]) -> Series:
    found: Series = {}
    for row in rows:
        found.setdefault(name(row), []).append(row)
    return found


def _label(
    row: Row, report: Report, without: Sequence[str] = (), only_learning: bool = False
) -> str:
    kept = [k for k in report.columns if k not in without and (is_learning(k) or not only_learning)]
    return ", ".join(f"{report.columns[k]}={row.group.values[k]}" for k in kept)


def _colors(series: list[list[Row]]) -> list[str]:
    """Grey for a control, a colour for each of the others."""
    colors = iter(COLORS * (1 + len(series) // len(COLORS)))
    return [GREY if all(row.is_control for row in part) else next(colors) for part in series]


def _has(row: Row, *keys: str) -> bool:
    return row.val is not None and all(row.group.setting(key) is not None for key in keys)


def _setting(row: Row, key: str) -> float:
    found = row.group.setting(key)
    assert found is not None
    return found


def _mean(row: Row) -> float:
    return row.val.mean if row.val else 0.0


def _parameters(row: Row) -> float:
    return fmean(row.group.scores("parameters").values())


def _spread(scores: list[float]) -> float:
    return stdev(scores) if len(scores) > 1 else 0.0


def _count(number: float) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:g}{name}"
    return f"{number:g}"
