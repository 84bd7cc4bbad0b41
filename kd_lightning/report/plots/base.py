"""Plot class, common style, and conversion to SVG and PNG."""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from kd_lightning.report.compare import Report, Row

INK = "#2b2f36"  # replaced in SVG by the page's text colour, which may be light or dark
GREY = "#8a9099"  # colour of baselines
COLORS = ("#3f86d8", "#e08a2e", "#36a269", "#a067d4", "#d9575c", "#2aa5b3", "#b5852a", "#d46aa6")
TEACHER_COLOR = COLORS[3]
LINE = 0.2  # inches a line of a legend
NARROW, WIDE = (5.8, 3.9), 12.0  # inches
NARROWEST = 5.0  # ratio of the ends of a log axis, so that it has two ticks of 1, 2, 5 or more

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.parse_math": False,  # dollar signs in names are literal
    "svg.fonttype": "none",  # text instead of paths: smaller, and it can be selected
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.5,
    "figure.constrained_layout.use": True,
    **{f"{part}.facecolor": "none" for part in ("figure", "axes", "savefig")},
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **{f"{axis}tick.color": INK for axis in "xy"},
}


@dataclass(frozen=True, eq=False)
class Plot:
    """Figure with a title and a caption.

    Attributes:
        name: name of the file, without extension.
        title: title of the plot.
        caption: explanation of the plot.
        figure: figure drawn within :func:`style`.
    """

    name: str
    title: str
    caption: str
    figure: Figure

    def __post_init__(self) -> None:
        # The layout takes most of the time, so it is computed once instead of for each file.
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    @property
    def is_wide(self) -> bool:
        return self.figure.get_figwidth() > NARROW[0]

    def svg(self) -> str:
        """Return an ``<svg>`` element without URLs, and with ids unique within the page."""
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with style(salt=self.name):
            self.figure.savefig(file, format="svg", metadata=nothing, dpi=150)
        svg = file.getvalue()
        svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
        svg = re.sub(r' xmlns(:\w+)?="[^"]*"|(?<=<g) id="[^"]*"', "", svg)
        return re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)

    def write_png(self, folder: Path) -> Path:
        """Save the plot on a white background and return the file."""
        file = folder / f"{self.name}.png"
        with style():
            self.figure.savefig(file, dpi=130, facecolor="white")
        return file


@contextmanager
def style(salt: str = "") -> Iterator[None]:
    """Apply the common style; ``salt`` makes the ids inside an SVG unique."""
    # A context, so a notebook that imports the report keeps its own style.
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt}):
        yield


def panels(count: int, height: float = NARROW[1]) -> tuple[Figure, list[Any]]:
    """Create a figure of panels side by side, wide if there is more than one."""
    # Not through pyplot, which keeps every figure in memory and chooses a display backend.
    figure = Figure(figsize=(NARROW[0] if count == 1 else WIDE, height))
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def percent_axis(axis: Any) -> None:
    """Format the ticks of shares as percentages, with as many decimals as needed."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 4):g} %"))


def ticks_at(axis: Any, ticks: Sequence[float], labels: Sequence[str]) -> None:
    """Set ticks at the given values only."""
    axis.set_ticks(ticks, labels=labels)
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def log_axis(axes: Any, text: Callable[[float], str]) -> None:
    """Make the horizontal axis logarithmic, with a few round ticks."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high / low < NARROWEST:
        middle, half = sqrt(low * high), sqrt(NARROWEST)
        low, high = axes.set_xlim(middle / half, middle * half)
    # By default, a log axis of less than one decade has hardly any labels.
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    found = [(d, e) for e in decades for d in (1, 2, 5) if low <= d * 10.0**e <= high]
    found = found if len(found) < 8 else [(d, e) for d, e in found if d == 1]
    # As text first: 2 · 10⁻⁵ in floats has many digits.
    ticks = [float(f"{d}e{e}") for d, e in found]
    ticks_at(axes.xaxis, ticks, [text(tick) for tick in ticks])


def pareto_front(axes: Any, points: Iterable[tuple[float, float]]) -> None:
    """Draw the front of points for which a small abscissa and a large ordinate are good."""
    points = list(points)
    best, front = -1.0, []
    # From the left, and the best first among equals: only improvements belong to the front.
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if y > best:
            best = y
            front.append((x, y))
    if len(front) == 1:  # nothing is traded for the other, so there is no line to explain
        return
    steps = [*front, (max(x for x, _ in points), best)]
    axes.step(*zip(*steps, strict=True), where="post", color=GREY, ls=":", label="Pareto front")


def series_of(rows: Sequence[Row], name: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Return the rows by the name of their series."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(name(row), []).append(row)
    return found


def label_of(row: Row, report: Report, without: Sequence[str]) -> str:
    """Return the label of a row without the values of some columns."""
    kept = {key: name for key, name in report.columns.items() if key not in without}
    return ", ".join(f"{name}={row.group.values[key]}" for key, name in kept.items())


def student_columns(report: Report) -> list[str]:
    """Return the columns that say how large a student is."""
    return [key for key in report.columns if key.partition(".")[0] == "student"]


def legend(axes: Any) -> None:
    """Place the legend below the panel, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        columns = max(1, min(len(labels), 72 // (longest + 8)))
        # Room for further lines of the legend, which would be taken from the panel.
        lines = ceil(len(labels) / columns)
        axes.figure.set_figheight(axes.figure.get_figheight() + LINE * max(lines - 2, 0))
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
        axes.legend(handles, labels, ncols=columns, **place)


def colors_of(series: Sequence[Sequence[Row]]) -> list[str]:
    """Return grey for the baseline, the first of several, and a colour for each other series."""
    others = [color for color in COLORS if color != TEACHER_COLOR]
    colors = iter(others * (1 + len(series) // len(others)))
    baselines = [i for i, part in enumerate(series) if all(row.is_baseline for row in part)]
    return [GREY if i in baselines[:1] else next(colors) for i in range(len(series))]


def mean_of(row: Row) -> float:
    """Return a row's mean validation accuracy."""
    return row.val.mean if row.val else 0.0


def baseline_name(report: Report) -> str:
    """Return the name of the baseline for legends."""
    return report.named or "baseline"
