"""The table of a report: for the terminal and the page, and in full as CSV.

A cell may have a second line, which says how sure its first one is.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from kd_lightning.cli.console import console
from kd_lightning.report.compare import TEST, VAL, Report, Row, Teacher
from kd_lightning.report.groups import Group
from kd_lightning.report.words import (
    interval,
    mean,
    p_value,
    percents,
    points,
    spread,
    teacher_name,
)

DIFFERENCE = "difference, points\n95 % interval"
HEADER = {  # of the page, and narrower for the terminal
    "n": "n",
    "validation, %\nmean ± sd, interval": "val\n%",
    "test, %\nmean ± sd": "test\n%",
    DIFFERENCE: "difference\npoints",
    "p\nHolm": "p\n(Holm)",
    "verdict\non test": "verdict",
    "agreement, %\nwith teacher": "agree-\nment %",
    "parameters": "para-\nmeters",
    "seconds": "time\ns",
}
EXPENDABLE = ("seconds", "parameters", "agreement, %\nwith teacher")
WORDS = 10  # characters of a name or a verdict that stand in one line at least
ERRORS_OF_ALL = "test/errors"
ERRORS = {
    ERRORS_OF_ALL: "errors",
    "test/errors_unseen": "of unseen classes",
    "test/errors_corrected": "corrected",
    "test/errors_unseen_corrected": "of unseen classes, corrected",
    "val/bias": "bias, set on validation",
}
COSTS = ("multiply_adds", "bytes", "latency_ms")


@dataclass(frozen=True)
class Table:
    """Cells of text under a header, the teachers first."""

    header: list[str]
    teachers: list[list[str]]
    rows: list[list[str]]

    @property
    def lines(self) -> list[list[str]]:
        """All that stands under the header."""
        return [*self.teachers, *self.rows]

    def without_empty_columns(self) -> "Table":
        """The same, less the columns that nobody fills."""
        used = range(len(self.header))
        return self._of([i for i in used if any(line[i] for line in self.lines)])

    def without(self, names: Sequence[str]) -> "Table":
        """The same, less some columns."""
        return self._of([i for i, name in enumerate(self.header) if name not in names])

    def _of(self, kept: list[int]) -> "Table":
        narrow = [[line[i] for i in kept] for line in (self.header, *self.lines)]
        ends = 1 + len(self.teachers)
        return Table(narrow[0], narrow[1:ends], narrow[ends:])


def main_table(report: Report) -> Table:
    """What the report is about."""
    keys = list(report.columns.values()) or ["group"]
    rows = []
    for row in report.rows:
        values = list(row.group.values.values()) or [row.group.label]
        star = " ★" if row is report.best and len(report.rows) > 1 else ""
        rows.append([*values[:-1], values[-1] + star, *_figures(row)])
    teachers = [_teacher(teacher, report, len(keys)) for teacher in report.teachers]
    return Table([*keys, *HEADER], teachers, rows).without_empty_columns()


def more_table(report: Report) -> Table:
    """Fidelity, calibration and cost: every further figure of validation that is there."""
    names = further_figures(report)
    rows = [
        [r.group.label, *(_plain(r.group.scores(name).values()) for name in names)]
        for r in report.rows
    ]
    teachers = [
        [teacher_name(teacher, report), *(_plain(teacher.scores(name)) for name in names)]
        for teacher in report.teachers
    ]
    header = ["group", *(name.removeprefix("val/").replace("_", " ") for name in names)]
    return Table(header, [t for t in teachers if any(t[1:])], rows)


def errors_table(report: Report) -> Table:
    """Errors on test by number, where that was counted, and what the bias made of them."""
    names = [name for name in ERRORS if any(run.number(name) is not None for run in report.runs)]
    counted = [row for row in report.rows if row.group.scores(ERRORS_OF_ALL)]
    rows = [[r.group.label, *(_counts(r.group.scores(name)) for name in names)] for r in counted]
    return Table(["group", *(ERRORS[name] for name in names)], [], rows)


def further_figures(report: Report) -> list[str]:
    """Names of the figures that the main table leaves out, classes one by one aside."""
    names = dict.fromkeys(name for run in report.runs for name in run.metrics)
    found = [
        name
        for name in names
        if (name.startswith("val/") or name in COSTS)
        and name != VAL
        and not name.rpartition("/")[2].startswith("teacher_")
        and "class" not in name
    ]
    return [n for n in found if any(run.number(n) is not None for run in report.runs)]


def print_table(table: Table) -> None:
    """To the terminal, less as many columns of little weight as it has no room for."""
    terminal = console()
    ever_less = (_rich(table.without(EXPENDABLE[:i])) for i in range(len(EXPENDABLE)))
    fits = (rich for rich in ever_less if _least(rich) <= terminal.width)
    # where none fits, lines that are still too long go on below
    terminal.print(next(fits, _rich(table.without(EXPENDABLE))), crop=False)


def _least(rich: RichTable) -> int:
    """The narrowest that it can be, with two blanks to a column."""
    return sum(2 + (column.min_width or 0) for column in rich.columns)


def _rich(table: Table) -> RichTable:
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, name in enumerate(table.header):
        cells = [HEADER.get(name, name), *(row[i] for row in table.lines)]
        least = max(len(line) for cell in cells for line in cell.split("\n"))
        is_figure = name in HEADER and not name.startswith("verdict")  # words go on below
        least = least if is_figure else min(least, WORDS)
        rich.add_column(
            Text(cells[0]), overflow="fold", justify="right", no_wrap=is_figure, min_width=least
        )
    for row in table.teachers:
        rich.add_row(*map(Text, row), style="dim", end_section=row is table.teachers[-1])
    for row in table.rows:
        rich.add_row(*map(Text, row))
    return rich


def write_csv(report: Report, file: Path) -> None:
    """Every figure of every group, unrounded, for other programs."""
    names = sorted({name for run in report.runs for name in run.metrics} - {"seed"})
    names = [name for name in names if any(run.number(name) is not None for run in report.runs)]
    about = ("control", "difference", "low", "high", "p", "p_holm", "paired", "verdict", "best")
    spreads = [f"{name} {what}" for name in names for what in ("mean", "sd")]
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow([*report.columns, "n", "seeds", *about, *spreads])
        for row in report.rows:
            writer.writerow([*_about(row, report), *_numbers(row.group, names)])


def _about(row: Row, report: Report) -> list[object]:
    delta = row.difference
    found = (delta.mean, delta.low, delta.high, delta.p) if delta else (None,) * 4
    return [
        *row.group.values.values(),
        len(row.group.runs),
        " ".join(row.group.runs),
        row.control.label if row.control else None,
        *found,
        row.p,
        delta.paired if delta else None,
        row.verdict,
        row is report.best,
    ]


def _numbers(group: Group, names: Sequence[str]) -> list[float | None]:
    cells: list[float | None] = []
    for name in names:
        scores = list(group.scores(name).values())
        cells.append(fmean(scores) if scores else None)
        cells.append(stdev(scores) if len(scores) > 1 else None)
    return cells


def _figures(row: Row) -> list[str]:
    group, delta, val = row.group, row.difference, row.val
    agreement = group.scores("test/agreement")
    change = [points(delta.mean), interval(delta.low, delta.high, signed=True)] if delta else []
    return [
        str(len(group.runs)),
        _two_lines(spread(val), interval(val.low, val.high) if val else ""),
        spread(row.test),
        _two_lines(*change),
        p_value(row.p),
        row.verdict,
        percents(mean(group, "test/agreement")) if agreement else "",
        _number(group, "parameters", ",.0f"),
        _number(group, "seconds", ".1f"),
    ]


def _teacher(teacher: Teacher, report: Report, width: int) -> list[str]:
    name, parameters = teacher_name(teacher, report), teacher.scores("parameters")
    count = str(len(teacher.runs)) if len(teacher.runs) > 1 else ""
    accuracies = [spread(teacher.summary(split)) for split in (VAL, TEST)]
    size = f"{fmean(parameters):,.0f}" if parameters else ""
    return [name, *[""] * (width - 1), count, *accuracies, "", "", "", "", size, ""]


def _two_lines(*lines: str) -> str:
    return "\n".join(line for line in lines if line)


def _number(group: Group, name: str, form: str) -> str:
    return format(mean(group, name), form) if group.scores(name) else ""


def _plain(scores: Iterable[float]) -> str:
    found = list(scores)
    known = [fmean(found)] if found else []
    if len(found) > 1 and max(found) > min(found):
        known.append(stdev(found))
    return " ± ".join(map(_short, known))


def _counts(scores: Mapping[str, float]) -> str:
    known = [fmean(scores.values())] if scores else []
    known += [stdev(scores.values())] if len(scores) > 1 else []
    return " ± ".join(f"{number:,.1f}" for number in known)


def _short(number: float) -> str:
    """Four decimals below a thousand, none above."""
    return f"{number:,.0f}" if abs(number) >= 1000 or number == int(number) else f"{number:.4f}"
