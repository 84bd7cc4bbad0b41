"""Files of a report: an HTML page, Markdown with plots, and CSV."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from kd_lightning.report.compare import Report, Row
from kd_lightning.report.plots import draw
from kd_lightning.report.plots.base import Plot
from kd_lightning.report.statistics import HELPS, HURTS, NO_DIFFERENCE
from kd_lightning.report.table import Table, literal
from kd_lightning.report.tables import (
    DIFFERENCE,
    classes_table,
    errors_table,
    further_table,
    main_table,
    runs_table,
    write_figures,
)
from kd_lightning.report.verdicts import METHOD, common_overrides, controls, headline, mood, notes
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.text import printable

TITLE = "Did distillation help?"
REACH = 60  # half the width of the plotted intervals, in SVG units


class Whisker(NamedTuple):
    """Difference and its interval, on a common scale for all rows of a table."""

    low: float
    mean: float
    high: float


def write_report(report: Report, folder: Path) -> None:
    """Write ``report.html``, ``report.md``, ``report.csv`` and ``plots/`` to a folder.

    Raises:
        UserError: if the folder cannot be written.
    """
    plots = draw(report)  # before the folder is created, since damaged diagnostics raise here
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = _write_pngs(plots, folder / "plots")
        (folder / "report.html").write_text(html(report, plots), encoding="utf-8")
        (folder / "report.md").write_text(_markdown(report, plots, files), encoding="utf-8")
        write_figures(report, folder / "report.csv")
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error}") from error


def html(report: Report, plots: Sequence[Plot]) -> str:
    """Return the self-contained HTML page."""
    return _template().render(
        title=TITLE,
        headline=headline(report),
        mood=mood(report),
        controls=controls(report),
        table=main_table(report) if report.rows else None,
        whiskers=_whiskers(report),
        difference=DIFFERENCE,
        css_class={HELPS: "helps", HURTS: "hurts", NO_DIFFERENCE: "verdict"},
        notes=_notes(report),
        plots=plots,
        # Narrow plots are placed in pairs; the last of an odd number gets its own row.
        alone=_left_over(plots),
        svg=lambda plot: Markup(plot.svg()),  # Matplotlib has escaped the text in it
        further=_further(report),
    )


@cache
def _template() -> Template:
    # Escaped by default, since names and paths of runs come from files and command lines.
    environment = Environment(
        loader=PackageLoader("kd_lightning", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_shown,
    )
    return environment.get_template("page.html.jinja")


def _shown(value: object) -> object:
    # Markup, which has no such characters, must stay Markup, or it would be escaped.
    return printable(value) if type(value) is str else value


def _notes(report: Report) -> list[str]:
    overrides = common_overrides(report)
    return [METHOD, *notes(report), *([overrides] if overrides else [])]


def _whiskers(report: Report) -> list[Whisker | None]:
    found = [_interval(row) for row in report.rows]
    # One scale for all rows, so their lengths are comparable.
    reach = max((abs(end) for interval in found if interval for end in interval), default=0.0)
    if not reach:
        return [None] * len(found)
    return [i and Whisker(*(REACH * end / reach for end in i)) for i in found]


def _interval(row: Row) -> Whisker | None:
    delta = row.difference
    if delta is None:
        return None
    low, high = (delta.mean if end is None else end for end in (delta.low, delta.high))
    return Whisker(low, delta.mean, high)


def _left_over(plots: Sequence[Plot]) -> Plot | None:
    narrow = [plot for plot in plots if not plot.is_wide]
    return narrow[-1] if len(narrow) % 2 else None


def _further(report: Report) -> list[tuple[str, Table]]:
    """Return the tables below the plots, with their titles."""
    tables = {
        "Errors on test data": errors_table(report),
        "Fidelity, calibration and cost (validation data)": further_table(report),
        "Accuracy by class, % (validation data)": classes_table(report),
        "Runs": runs_table(report),
    }
    return [(title, t) for title, t in tables.items() if t.rows and len(t.columns) > 1]


def _write_pngs(plots: Sequence[Plot], folder: Path) -> list[Path]:
    if not plots:
        return []
    folder.mkdir(exist_ok=True)
    return [plot.write_png(folder) for plot in plots]


def _markdown(report: Report, plots: Sequence[Plot], files: Sequence[Path]) -> str:
    parts = [f"# {TITLE}", *map(literal, [headline(report), *controls(report)])]
    parts += [main_table(report).markdown()] if report.rows else []
    parts += map(literal, _notes(report))
    for plot, file in zip(plots, files, strict=True):
        parts.append(f"## {plot.title}\n\n![{plot.title}](plots/{file.name})")
        parts.append(literal(plot.caption))
    # Markdown is made for sharing, and paths of runs are useful on this machine only.
    tables = [(title, table) for title, table in _further(report) if title != "Runs"]
    parts += [f"## {title}\n\n{table.markdown()}" for title, table in tables]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"
