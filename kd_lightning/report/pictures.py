"""Pictures of a report: which there are, how they look, and how they become SVG or PNG."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

INK = "#2b2f36"  # becomes the text colour of the page, which is light or dark
GREY = "#8a9099"  # of the control
COLORS = ("#3f86d8", "#e08a2e", "#36a269", "#a067d4", "#d9575c", "#2aa5b3", "#b5852a", "#d46aa6")
CELL, WIDE = (5.8, 3.9), 12.0  # inches

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",
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
class Picture:
    """A figure with what there is to say about it.

    Attributes:
        name: of its file.
        title: what it shows.
        caption: how to read it.
        figure: drawn in :func:`style`.
    """

    name: str
    title: str
    caption: str
    figure: Figure

    def __post_init__(self) -> None:
        # laid out once, not each time it is saved: that is most of the work
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    @property
    def is_wide(self) -> bool:
        return self.figure.get_figwidth() > CELL[0]

    def svg(self) -> str:
        """An ``<svg>`` for inside a page: no addresses, no names that meet another's."""
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with style(salt=self.name):
            self.figure.savefig(file, format="svg", metadata=nothing, dpi=150)
        svg = file.getvalue()
        svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
        svg = re.sub(r' xmlns(:\w+)?="[^"]*"|(?<=<g) id="[^"]*"', "", svg)
        return re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)

    def write_png(self, folder: Path) -> Path:
        """Save on white and return the file."""
        file = folder / f"{self.name}.png"
        with style():
            self.figure.savefig(file, dpi=130, facecolor="white")
        return file


@contextmanager
def style(salt: str = "") -> Iterator[None]:
    """The look of all pictures; ``salt`` makes the names inside one its own."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt}):
        yield


def panels(count: int, height: float = CELL[1]) -> tuple[Figure, list[Any]]:
    """A figure of panels side by side, wide where there is more than one."""
    figure = Figure(figsize=(CELL[0] if count == 1 else WIDE, height))
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def percent_axis(axis: Any) -> None:
    """Shares as percentages, with as many decimals as the ticks need."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 4):g} %"))


def log_axis(axis: Any, ticks: list[float], names: list[str]) -> None:
    """Ticks at these values and nowhere else."""
    axis.set_ticks(ticks, labels=names)
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def legend(axes: Any) -> None:
    """Below the panel, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        columns = max(1, min(len(labels), 72 // (longest + 8)))
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
        axes.legend(handles, labels, ncols=columns, **place)
