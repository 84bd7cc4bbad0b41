"""Pictures of what was transferred, from each run's ``evidence.npz``.

All of it is measured on validation data. K true classes, C answers, B bins:

bins, teacher_bins              B×3: count, mean confidence, accuracy
class_probabilities             K×C: the student's mean softmax by true class
temperatures                    T of them, the first of them 1
teacher_class_probabilities     T×K×C: the teacher's at each of these
temperature_curves              see report/temperature.py
"""

from typing import Any
from zipfile import BadZipFile

import numpy as np
from matplotlib.colors import LogNorm, PowerNorm, to_rgba
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from kd_lightning.report.compare import Report, Row
from kd_lightning.report.pictures import COLORS, GREY, INK, WIDE, Picture, panels
from kd_lightning.report.read import Run
from kd_lightning.report.temperature import what_temperature_does
from kd_lightning.utils.errors import UserError

Array = np.ndarray[Any, Any]

MOST_NAMES = 20  # classes, before their numbers would overlap
FAINT = 1e-4  # the smallest probability that has a colour of its own


def load(run: Run) -> dict[str, Array]:
    """The evidence of a run; empty where it left none."""
    file = run.path / "evidence.npz"
    if not file.is_file():
        return {}
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name], np.float64) for name in arrays.files}
    except (OSError, EOFError, TypeError, AttributeError, ValueError, BadZipFile) as error:
        raise UserError(f"{file} is damaged; without it the report goes on") from error


def pictures(report: Report) -> list[Picture]:
    """What the evidence of the best group, its control and their teacher shows."""
    rows = _shown(report)
    evidence = {row: [load(run) for run in row.group.runs.values()] for row in rows}
    # the lead's, since the control may have had another teacher
    latest = next((a for row in reversed(rows) for a in evidence[row] if a), {})
    names = {row: report.control if row.is_control else row.group.label for row in rows}
    bins = {"teacher": _sized(latest, "teacher_bins", 2)}
    bins |= {names[row]: _merged_bins(found) for row, found in evidence.items()}
    teacher = _sized(latest, "teacher_class_probabilities", 3)
    temperatures = latest.get("temperatures", np.empty(0))
    classes = {"teacher": None if teacher is None else teacher[0]}
    classes |= {names[row]: _mean_classes(found) for row, found in evidence.items()}
    return [
        *_reliability({k: v for k, v in bins.items() if v is not None}, report.control),
        *(_dark_knowledge(temperatures, teacher) if teacher is not None else []),
        *what_temperature_does(latest.get("temperature_curves")),
        *_similarity({k: v for k, v in classes.items() if v is not None}),
    ]


def _shown(report: Report) -> list[Row]:
    lead = report.lead or report.best
    rows = [r for r in report.rows if lead and r.group is lead.control and r is not lead]
    return [*rows, lead] if lead else []


def _sized(arrays: dict[str, Array], name: str, dimensions: int) -> Array | None:
    """An array, if it is there and has the shape it should have."""
    found = arrays.get(name)
    if found is None or found.ndim != dimensions or not found.size:
        return None
    return None if name.endswith("bins") and found.shape[1] != 3 else found


def _merged_bins(runs: list[dict[str, Array]]) -> Array | None:
    """The bins of all seeds as one: counts add up, shares are weighted by them."""
    found = [b for arrays in runs if (b := _sized(arrays, "bins", 2)) is not None]
    if not found or len({b.shape for b in found}) > 1:
        return None
    stack = np.nan_to_num(np.stack(found))
    counts = stack[..., 0].sum(0)
    shares = (stack[..., :1] * stack[..., 1:]).sum(0) / np.maximum(counts, 1)[:, None]
    return np.column_stack([counts, shares])


def _mean_classes(runs: list[dict[str, Array]]) -> Array | None:
    found = [a for arrays in runs if (a := _sized(arrays, "class_probabilities", 2)) is not None]
    return np.mean(found, 0) if found and len({a.shape for a in found}) == 1 else None


def _reliability(bins: dict[str, Array], control: str) -> list[Picture]:
    if not bins:
        return []
    figure, axes = panels(len(bins))
    colors = {"teacher": COLORS[3], control: GREY}
    for ax, (name, table) in zip(axes, bins.items(), strict=True):
        count, confidence, accuracy = np.nan_to_num(table).T
        share = count / max(count.sum(), 1)
        error = float((share * abs(accuracy - confidence)).sum())
        used, width = count > 0, 1 / len(count)
        left = np.arange(len(count))[used] * width
        faint = 0.2 + 0.7 * np.sqrt(share[used] / max(share.max(), FAINT))
        shades = [to_rgba(colors.get(name, COLORS[0]), alpha) for alpha in faint]
        ax.bar(left, accuracy[used], width, align="edge", color=shades)
        ax.plot([0, 1], [0, 1], "--", color=INK, lw=1)
        ax.plot(confidence[used], accuracy[used], ".", color=INK)
        ax.set(xlim=(0, 1), ylim=(0, 1), title=f"{name}\ncalibration error {100 * error:.2f} %")
        ax.set(xlabel="confidence", ylabel="accuracy" if ax is axes[0] else "")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    caption = (
        "On the dashed line a network is right as often as it says. Bars below it are "
        "overconfident, above it underconfident; the fainter a bar, the fewer its samples. "
        "Dots are the mean confidence of each bin."
    )
    return [Picture("reliability", "Reliability", caption, figure)]


def _dark_knowledge(temperatures: Array, answers: Array) -> list[Picture]:
    if temperatures.shape != answers.shape[:1]:
        return []
    figure, axes = panels(len(temperatures), height=WIDE / 3.6)
    image: Any = None
    for ax, temperature, table in zip(axes, temperatures, answers, strict=True):
        shown = np.where(np.isfinite(table), np.maximum(table, FAINT), np.nan)
        image = ax.imshow(shown, cmap="magma", norm=LogNorm(FAINT, 1))
        _class_axes(ax, table, "the teacher's answer", "true class" if ax is axes[0] else "")
        ax.set_title(f"T = {temperature:g}")
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    caption = (
        "The teacher's mean probabilities for each true class. At T = 1 it names its class "
        "and little else; a higher T lets the student see which classes it finds alike."
    )
    return [Picture("dark_knowledge", "What the teacher says of the classes", caption, figure)]


def _similarity(classes: dict[str, Array]) -> list[Picture]:
    """Between true classes i, j: Σ √(p_i·p_j), the overlap of what is answered to them."""
    alike = {name: _overlap(table) for name, table in classes.items()}
    shape = next((a.shape for a in alike.values()), None)
    alike = {name: a for name, a in alike.items() if a.shape == shape and np.isfinite(a).any()}
    if not alike:
        return []
    most = max(float(np.nanmax(a)) for a in alike.values())
    figure, axes = panels(len(alike), height=CELL_HEIGHT[len(alike)])
    image: Any = None
    for ax, (name, table) in zip(axes, alike.items(), strict=True):
        image = ax.imshow(table, cmap="viridis", norm=PowerNorm(0.5, 0, most))
        _class_axes(ax, table, "class", "class" if ax is axes[0] else "")
        r = _correlation(table, alike.get("teacher", table))
        ax.set_title(name if name == "teacher" or r is None else f"{name}\nr = {r:.2f}")
    figure.colorbar(image, ax=axes, shrink=0.8)
    caption = (
        "How much the answers to two classes overlap (Bhattacharyya coefficient, T = 1). "
        "r is the correlation with the teacher's: what a student took over of it."
    )
    return [Picture("class_similarity", "Which classes are alike", caption, figure)]


CELL_HEIGHT = {1: 4.2, 2: 4.6, 3: 4.3}


def _overlap(probabilities: Array) -> Array:
    roots = np.sqrt(np.maximum(probabilities, 0))
    alike = roots @ roots.T
    np.fill_diagonal(alike, np.nan)  # a class is like itself, and would outshine the rest
    return alike


def _correlation(ours: Array, teachers: Array) -> float | None:
    both = np.isfinite(ours) & np.isfinite(teachers)
    if both.sum() < 3 or ours is teachers:
        return None
    a, b = ours[both], teachers[both]
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else None


def _class_axes(ax: Any, table: Array, x: str, y: str) -> None:
    for axis, count in ((ax.xaxis, table.shape[1]), (ax.yaxis, table.shape[0])):
        names = [str(i) for i in range(count)] if count <= MOST_NAMES else []
        axis.set_ticks(range(len(names)), labels=names)
    ax.tick_params(length=0, labelsize="small")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set(xlabel=x, ylabel=y)
