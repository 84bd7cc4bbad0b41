"""Tables of text for the terminal, HTML, Markdown and CSV.

Numbers are formatted only here and in :mod:`kd_lightning.metrics.figures`.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

from kd_lightning.metrics.figures import Unit, number
from kd_lightning.utils.text import printable

if TYPE_CHECKING:  # SciPy would slow down every command that prints a table
    from kd_lightning.report.statistics import Summary

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a formula begins in a spreadsheet


@dataclass(frozen=True)
class Column:
    """Column of a table.

    Attributes:
        header: header; in HTML, text after a line break is smaller.
        short: header in the terminal, if different.
        kind: ``name`` and ``verdict`` may wrap; a ``number`` may not.
        dropped: position in the order in which columns are dropped if the terminal is too
            narrow, from 1; 0 is never dropped.
    """

    header: str
    short: str = ""
    kind: Literal["name", "number", "verdict"] = "number"
    dropped: int = 0


@dataclass(frozen=True)
class Table:
    """Table of text; a second line in a cell gives the uncertainty of the first.

    Attributes:
        columns: columns from left to right.
        rows: a list of cells for each group, job or link.
        teachers: rows of teachers, shown first.
    """

    columns: list[Column]
    rows: list[list[str]]
    teachers: list[list[str]] = field(default_factory=list)

    @property
    def header(self) -> list[str]:
        return [column.header for column in self.columns]

    @property
    def lines(self) -> list[list[str]]:
        """All rows below the header."""
        return [*self.teachers, *self.rows]

    def without_empty_columns(self) -> "Table":
        """Return the table without columns whose cells are all empty."""
        return self._only([any(cells) for cells in zip(*self.lines, strict=True)])

    def narrowed(self, steps: int) -> "Table":
        """Return the table without the columns dropped in the first ``steps`` steps."""
        return self._only([not 0 < column.dropped <= steps for column in self.columns])

    def _only(self, kept: Sequence[bool]) -> "Table":
        def pick(cells: list[str]) -> list[str]:
            return [cell for cell, keep in zip(cells, kept, strict=True) if keep]

        # A plain Table also of a subclass: a narrowed sweep table is only printed.
        columns = [column for column, keep in zip(self.columns, kept, strict=True) if keep]
        return Table(columns, [*map(pick, self.rows)], [*map(pick, self.teachers)])

    def printable(self) -> "Table":
        """Return the table with control characters as escapes."""
        columns = [
            replace(c, header=printable(c.header), short=printable(c.short)) for c in self.columns
        ]
        rows, teachers = (
            [[*map(printable, r)] for r in part] for part in (self.rows, self.teachers)
        )
        return Table(columns, rows, teachers)

    def markdown(self) -> str:
        """Format the table as a Markdown pipe table, with escaped cells."""
        lines = [self.header, ["---"] * len(self.columns), *self.lines]
        return "".join(f"| {' | '.join(map(literal, line))} |\n" for line in lines)

    def write_csv(self, file: Path) -> None:
        """Write the table as CSV; see :func:`write_csv`."""
        header = [name.replace("\n", " ") for name in self.header]
        write_csv(file, [header, *self.lines])


def write_csv(file: Path, lines: Iterable[Sequence[object]]) -> None:
    """Write lines of cells as CSV; None is an empty cell, and no text is a formula."""
    # newline="" as the csv module requires: it writes the line ends itself.
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(map(_inert, line) for line in lines)


def _inert(cell: object) -> object:
    """Return a cell that a spreadsheet shows instead of computing it."""
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    # The apostrophe is how spreadsheets themselves mark text. Numbers may begin with a sign.
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def literal(text: str) -> str:
    """Escape text for Markdown."""
    # Not underscores: CommonMark takes them literally inside words, and names contain many.
    for sign in "\\`*[]":
        text = text.replace(sign, f"\\{sign}")
    return (
        escape(printable(text), quote=False)
        .replace("\r", " ")
        .replace("|", "&#124;")
        .replace("\n", "<br>")
    )


def two_lines(*lines: str) -> str:
    return "\n".join(line for line in lines if line)


def percents(share: float) -> str:
    """Format a share in percent, without the sign."""
    return number(share, "%")


def file_size(count: float) -> str:
    """Format a number of bytes.

    >>> file_size(110862), file_size(4812345), file_size(999.6)
    ('111 kB', '4.81 MB', '1 kB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        # By what would be shown: 999.6 bytes are 1 kB, not 1,000 bytes.
        if float(f"{count:.3g}") >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.3g} bytes"


def spread(summary: "Summary | None", unit: Unit = "%") -> str:
    """Format mean and standard deviation, ``97.73 ± 0.12``; of a single run, the mean alone."""
    known = (summary.mean, summary.sd) if summary else ()
    return " ± ".join(number(x, unit) for x in known if x is not None)


def mean_and_sd(scores: Iterable[float], unit: Unit) -> str:
    """Format mean and standard deviation of scores; the mean alone if all are equal."""
    found = list(scores)
    known = [fmean(found)] if found else []
    # ± 0 after sizes and counts, which are the same in every run, would be noise.
    known += [stdev(found)] if len(set(found)) > 1 else []
    return " ± ".join(number(x, unit) for x in known)


def points(share: float) -> str:
    """Format a difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """Format an interval of shares in percent, clipped to 0 and 100."""
    # Intervals of Student's t are symmetric and may exceed the range of a share.
    if low is None or high is None:
        return ""
    return f"{percents(max(low, 0))}…{percents(min(high, 1))}"


def signed_interval(low: float | None, high: float | None) -> str:
    """Format an interval of a difference, such as ``+0.31…+0.62``."""
    return "" if low is None or high is None else f"{points(low)}…{points(high)}"


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
