"""Plots of calibration and class structure, from each run's ``diagnostics.npz``.

The tables are measured on validation data, for K true classes, C outputs and B bins:

bins, teacher_bins              B×3: count, mean confidence, accuracy
class_probabilities             K×C: mean softmax of the student by true class
temperatures                    T values, the first of which is 1
teacher_class_probabilities     T×K×C: mean softmax of the teacher at each temperature
temperature_curves              see report/plots/temperature.py
"""

import io
import math
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from matplotlib.colors import LogNorm, PowerNorm, to_rgba
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from kd_lightning.metrics.figures import with_unit
from kd_lightning.report.compare import Report, Row
from kd_lightning.report.plots.base import (
    COLORS,
    GREY,
    INK,
    TEACHER_COLOR,
    WIDE,
    Plot,
    baseline_name,
    panels,
)
from kd_lightning.report.plots.temperature import effect_of_temperature
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.reading import is_there, read_bytes
from kd_lightning.utils.run_directory import DIAGNOSTICS, RunDirectory

Array = np.ndarray[Any, Any]

OLD_NAME = "evidence.npz"  # name of the file in version 0.1
MOST_BYTES = 2**28  # of the file, and of all arrays unpacked: a small archive may claim any size
MOST_ARRAYS = 100
MOST_NUMBERS = 20  # classes whose numbers fit on an axis without overlapping
FAINTEST = 1e-4  # lower end of the colour scale of probabilities
HEIGHTS = {1: 4.2, 2: 4.6, 3: 4.3}  # inches, by the number of square panels


def load(run: RunDirectory) -> dict[str, Array]:
    """Read the diagnostics of a run; empty if it has none.

    Raises:
        UserError: if the file is damaged.
    """
    file = run.path / DIAGNOSTICS
    file = file if is_there(file) else run.path / OLD_NAME
    if not is_there(file):
        return {}
    try:
        content = io.BytesIO(read_bytes(file, MOST_BYTES))
        with ZipFile(content) as archive:
            members = archive.infolist()
            if len(members) > MOST_ARRAYS:
                raise ValueError("too many arrays")
            sizes = [_size(archive, member) for member in members]
        if sum(sizes) > MOST_BYTES:
            raise ValueError("too large")
        # Pickles are refused, because unpickling would run code of whoever wrote the file.
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            return {name: arrays[name].astype(np.float64) for name in arrays.files}
    except Exception as error:  # zipfile, zlib and NumPy each raise their own for damage
        raise UserError(f"{file} is damaged: delete it to make the report without it") from error


def _size(archive: ZipFile, member: ZipInfo) -> int:
    """Return the bytes that an array takes as float64, before anything is allocated for it.

    Raises:
        ValueError: if it contains no numbers, or not as many as its header claims.
    """
    with archive.open(member) as opened:
        version = np.lib.format.read_magic(opened)
        if version != (1, 0):  # what NumPy writes for every array of numbers
            raise ValueError("an unknown version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
        header = opened.tell()
    if dtype.kind not in "fiub" or min(shape, default=0) < 0:
        raise ValueError("an array does not contain numbers")
    # In Python's integers, which have no largest one.
    count = math.prod(shape)
    if header + count * dtype.itemsize != member.file_size:
        raise ValueError("an array is not as large as it claims")
    return count * 8


def plots(report: Report) -> list[Plot]:
    """Draw the diagnostics of the headline's group, its baseline and its teacher."""
    rows = _shown(report)
    found = {row: [load(run) for run in row.group.runs.values()] for row in rows}
    # Reversed, since the headline's group comes last and its baseline may have another teacher.
    latest = next((arrays for row in reversed(rows) for arrays in found[row] if arrays), {})
    baseline = baseline_name(report)
    names = {row: baseline if row.is_baseline else row.group.label for row in rows}
    bins = {"teacher": _sized(latest, "teacher_bins", 2)}
    bins |= {names[row]: _merged_bins(arrays) for row, arrays in found.items()}
    teacher = _sized(latest, "teacher_class_probabilities", 3)
    temperatures = latest.get("temperatures", np.empty(0))
    classes = {"teacher": None if teacher is None else teacher[0]}
    classes |= {names[row]: _mean_classes(arrays) for row, arrays in found.items()}
    return [
        *_reliability({k: v for k, v in bins.items() if v is not None}, baseline),
        *(_class_probabilities(temperatures, teacher) if teacher is not None else []),
        *effect_of_temperature(latest.get("temperature_curves")),
        *_class_similarity({k: v for k, v in classes.items() if v is not None}),
    ]


def _shown(report: Report) -> list[Row]:
    lead = report.lead or report.best
    rows = [r for r in report.rows if lead and r.group is lead.baseline and r is not lead]
    return [*rows, lead] if lead else []


def _sized(arrays: dict[str, Array], name: str, dimensions: int) -> Array | None:
    """Return an array if it exists and has the expected number of dimensions."""
    found = arrays.get(name)
    if found is None or found.ndim != dimensions or not found.size:
        return None
    return None if name.endswith("bins") and found.shape[1] != 3 else found


def _merged_bins(runs: list[dict[str, Array]]) -> Array | None:
    """Merge the bins of all seeds: counts are added, and weight the other columns."""
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


def _reliability(bins: dict[str, Array], baseline: str) -> list[Plot]:
    if not bins:
        return []
    figure, axes = panels(len(bins))
    colors = {"teacher": TEACHER_COLOR, baseline: GREY}
    for ax, (name, table) in zip(axes, bins.items(), strict=True):
        error = _reliability_panel(ax, table, colors.get(name, COLORS[0]))
        ax.set(title=f"{name}\ncalibration error {with_unit(error, '%')}")
        ax.set(xlabel="confidence", ylabel="accuracy" if ax is axes[0] else "")
    caption = (
        "A calibrated network's bars end at the dashed line; below it a network is overconfident, "
        "above it underconfident. Paler bars hold fewer samples. Dots are at the mean confidence "
        "of each bin."
    )
    return [Plot("reliability", "Reliability", caption, figure)]


def _reliability_panel(ax: Any, table: Array, color: str) -> float:
    """Draw the bins and return the expected calibration error."""
    count, confidence, accuracy = np.nan_to_num(table).T
    share = count / max(count.sum(), 1)
    used, width = count > 0, 1 / len(count)
    left = np.arange(len(count))[used] * width
    # The square root keeps bins visible that contain a hundredth of the fullest bin's samples.
    alphas = 0.2 + 0.7 * np.sqrt(share[used] / max(share.max(), FAINTEST))
    shades = [to_rgba(color, alpha) for alpha in alphas]
    ax.bar(left, accuracy[used], width, align="edge", color=shades)
    ax.plot([0, 1], [0, 1], "--", color=INK, lw=1)
    ax.plot(confidence[used], accuracy[used], ".", color=INK)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    return float((share * abs(accuracy - confidence)).sum())


def _class_probabilities(temperatures: Array, probabilities: Array) -> list[Plot]:
    if temperatures.shape != probabilities.shape[:1]:
        return []
    figure, axes = panels(len(temperatures), height=WIDE / 3.6)
    image: Any = None
    for ax, temperature, table in zip(axes, temperatures, probabilities, strict=True):
        shown = np.where(np.isfinite(table), np.maximum(table, FAINTEST), np.nan)
        image = ax.imshow(shown, cmap="magma", norm=LogNorm(FAINTEST, 1))
        _class_axes(ax, table, "predicted class", "true class" if ax is axes[0] else "")
        ax.set_title(f"T = {temperature:g}")
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    caption = (
        "Mean softmax of the teacher by true class, on a logarithmic scale. At T = 1 nearly all "
        "probability is on the true class; a higher T raises the probabilities of similar classes."
    )
    return [Plot("class_probabilities", "Class probabilities of the teacher", caption, figure)]


def _class_similarity(classes: dict[str, Array]) -> list[Plot]:
    """Plot the overlap of true classes i and j, Σ_c √(p_ic·p_jc) of their mean softmax p."""
    found = {name: _overlap(table) for name, table in classes.items()}
    shape = next((a.shape for a in found.values()), None)
    found = {name: a for name, a in found.items() if a.shape == shape and np.isfinite(a).any()}
    if not found:
        return []
    most = max(float(np.nanmax(a)) for a in found.values())
    figure, axes = panels(len(found), height=HEIGHTS[len(found)])
    image: Any = None
    for ax, (name, table) in zip(axes, found.items(), strict=True):
        image = ax.imshow(table, cmap="viridis", norm=PowerNorm(0.5, 0, most))
        _class_axes(ax, table, "class", "class" if ax is axes[0] else "")
        r = _correlation(table, found.get("teacher", table))
        ax.set_title(name if name == "teacher" or r is None else f"{name}\nr = {r:.2f}")
    figure.colorbar(image, ax=axes, shrink=0.8)
    caption = (
        "Overlap of the mean softmax of two classes (Bhattacharyya coefficient, T = 1). r is the "
        "correlation with the teacher's overlaps: how closely the student reproduces them."
    )
    return [Plot("class_similarity", "Similarity of classes", caption, figure)]


def _overlap(probabilities: Array) -> Array:
    roots = np.sqrt(np.maximum(probabilities, 0))
    overlap = roots @ roots.T
    # The diagonal is 1 for every network and would dominate the colour scale.
    np.fill_diagonal(overlap, np.nan)
    return overlap


def _correlation(ours: Array, teachers: Array) -> float | None:
    both = np.isfinite(ours) & np.isfinite(teachers)
    if both.sum() < 3 or ours is teachers:
        return None
    a, b = ours[both], teachers[both]
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else None


def _class_axes(ax: Any, table: Array, x: str, y: str) -> None:
    for axis, count in ((ax.xaxis, table.shape[1]), (ax.yaxis, table.shape[0])):
        labels = [str(i) for i in range(count)] if count <= MOST_NUMBERS else []
        axis.set_ticks(range(len(labels)), labels=labels)
    ax.tick_params(length=0, labelsize="small")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set(xlabel=x, ylabel=y)
