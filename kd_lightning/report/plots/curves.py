"""Plots of validation accuracy by epoch, and by link along a chain."""

import csv
import io
from itertools import cycle
from statistics import fmean, stdev
from typing import Any

import numpy as np

from kd_lightning.report.compare import VAL, Report, Row
from kd_lightning.report.plots.base import (
    COLORS,
    GREY,
    Plot,
    colors_of,
    legend,
    mean_of,
    panels,
    percent_axis,
)
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.reading import is_there, read_bytes
from kd_lightning.utils.run_directory import CURVES, RunDirectory, finite
from kd_lightning.utils.text import one_line

MOST_BYTES = 2**26  # of a file: the figures of millions of steps
MOST_CURVES = 6  # more are hard to distinguish
MOST_CHAINS = 3  # panels side by side


def learning_curves(report: Report) -> list[Plot]:
    """Plot validation accuracy by epoch, for the best groups if there are many."""
    found = [(row, _by_epoch(row)) for row in report.rows]
    found = [(row, curve) for row, curve in found if curve]
    if not any(len(curve) > 1 for _, curve in found):
        return []  # single points would only repeat the table
    lead = report.lead

    # The headline's baseline is always shown: without it a curve cannot be judged.
    def rank(row: Row) -> tuple[bool, float]:
        return lead is not None and row.group is lead.baseline, mean_of(row)

    kept = sorted((row for row, _ in found), key=rank, reverse=True)[:MOST_CURVES]
    shown = [(row, curve) for row, curve in found if row in kept]
    figure, (ax,) = panels(1)
    dashes = cycle(("-", "--", ":", "-."))  # to distinguish baselines, which are all grey
    for (row, curve), color in zip(shown, colors_of([[r] for r, _ in shown]), strict=True):
        line = {"color": color, "ls": next(dashes) if row.is_baseline else "-"}
        _band(ax, curve, label=row.group.label, **line)
    percent_axis(ax.yaxis)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="epoch", ylabel="validation accuracy")
    legend(ax)
    caption = "Means over seeds; bands are one standard deviation."
    if len(shown) < len(found):
        caption += f" The best {len(shown)} of {len(found)} groups, with the baseline of the best."
    return [Plot("learning_curves", "Learning curves", caption, figure)]


def _band(ax: Any, curve: dict[int, list[float]], **line: Any) -> None:
    epochs = np.array(sorted(curve)) + 1
    means, spread = np.transpose([mean_and_sd(curve[epoch - 1]) for epoch in epochs])
    ax.plot(epochs, means, marker="o" if len(epochs) < 15 else "", **line)
    ax.fill_between(epochs, means - spread, means + spread, color=line["color"], alpha=0.16, lw=0)


def _by_epoch(row: Row) -> dict[int, list[float]]:
    """Return the scores of all seeds by epoch."""
    found: dict[int, list[float]] = {}
    for run in row.group.runs.values():
        for epoch, score in _curve(run).items():
            found.setdefault(epoch, []).append(score)
    return found


def _curve(run: RunDirectory) -> dict[int, float]:
    """Read validation accuracy by epoch; for an epoch repeated after resuming, the later value."""
    file = run.path / CURVES
    if not is_there(file):
        return {}
    # The final validation of the best epoch may be recorded, too, with the number of epochs.
    last = run.number("epochs") or float("inf")
    content = io.BytesIO(read_bytes(file, MOST_BYTES))
    found: dict[int, float] = {}
    try:
        # Decoded and kept line by line: as objects, the rows would take many times the file's size.
        lines = csv.reader(io.TextIOWrapper(content, encoding="utf-8", newline=""))
        header = next(lines, [])
        wanted = [header.index(name) for name in ("epoch", VAL) if name in header]
        if len(wanted) < 2:
            return {}
        for row in lines:
            epoch, score = (row[i] if i < len(row) else "" for i in wanted)
            if epoch and score:
                found[int(float(epoch))] = float(score)
    except (ValueError, OverflowError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}") from error
    return {e: s for e, s in found.items() if e < last and finite(s) is not None}


def chains(report: Report) -> list[Plot]:
    """Plot accuracy by link, in one panel per chain."""
    found = [(row, scores) for row in report.rows if (scores := link_scores(row))][:MOST_CHAINS]
    if not found:
        return []
    figure, axes = panels(len(found))
    for ax, (row, scores) in zip(axes, found, strict=True):
        _chain(ax, row, scores)
        ax.set(title=row.group.label, ylabel="validation accuracy" if ax is axes[0] else "")
    caption = (
        "Each link is the teacher of the next. Means over seeds; bars and band are one standard "
        "deviation. All links together: the mean of their probabilities."
    )
    return [Plot("chain", "Accuracy along the chain", caption, figure)]


def link_scores(row: Row) -> list[list[float]]:
    """Return the accuracies of each link over seeds, followed by those of the ensemble.

    Empty if the row is not a chain or lacks the figures of a link.
    """
    links = row.group.first.facts["links"]
    names = [f"{VAL}_{i}" for i in range(len(links))]
    names += ["val/ensemble_accuracy"] if links else []
    found = [list(row.group.scores(name).values()) for name in names]
    return found if all(found) else []


def _chain(ax: Any, row: Row, scores: list[list[float]]) -> None:
    *links, together = scores
    names = list(map(str, row.group.first.facts["links"]))
    mean, spread = mean_and_sd(together)
    ax.axhspan(mean - spread, mean + spread, color=GREY, alpha=0.16, lw=0)
    ax.axhline(mean, color=GREY, ls="--", label="all links together")
    means, spreads = zip(*map(mean_and_sd, links), strict=True)
    ax.errorbar(range(len(links)), means, spreads, marker="o", color=COLORS[0], label="link")
    ax.set_xticks(range(len(links)), [name.replace(" ", "\n") for name in names])
    ax.margins(x=0.1)
    percent_axis(ax.yaxis)
    legend(ax)


def mean_and_sd(scores: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation, which is 0 for a single score."""
    return fmean(scores), stdev(scores) if len(scores) > 1 else 0.0
