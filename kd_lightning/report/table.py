"""The one table: cells of text for the terminal, a page, Markdown and CSV.

Numbers become text here and in :mod:`kd_lightning.metrics.figures`, nowhere else.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

from kd_lightning.metrics.figures import Unit, number

if TYPE_CHECKING:  # SciPy would slow down every command that prints a table
    from kd_lightning.report.statistics import Summary


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        header: on pages; what follows a line break is smaller there.
        short: in the terminal, where it is another.
        kind: ``name`` and ``verdict`` may wrap, a ``number`` may not.
        dropped: the order in which columns go where the terminal has no room; 0 never.
    """

    header: str
    short: str = ""
    kind: Literal["name", "number", "verdict"] = "number"
    dropped: int = 0


@dataclass(frozen=True)
class Table:
    """Cells of text; what follows a line break in a cell says how sure its first line is.

    Attributes:
        columns: from left to right.
        rows: a list of cells for each group, job or link.
        teachers: rows of teachers, which come first.
    """

    columns: list[Column]
    rows: list[list[str]]
    teachers: list[list[str]] = field(default_factory=list)

    @property
    def header(self) -> list[str]:
        return [column.header for column in self.columns]

    @property
    def lines(self) -> list[list[str]]:
        """Everything below the header."""
        return [*self.teachers, *self.rows]

    def without_empty_columns(self) -> "Table":
        """The same without the columns that have no cell with text."""
        return self._only([any(cells) for cells in zip(*self.lines, strict=True)])

    def narrowed(self, steps: int) -> "Table":
        """The same without the columns that are dropped first."""
        return self._only([not 0 < column.dropped <= steps for column in self.columns])

    def _only(self, kept: Sequence[bool]) -> "Table":
        def pick(cells: list[str]) -> list[str]:
            return [cell for cell, keep in zip(cells, kept, strict=True) if keep]

        columns = [column for column, keep in zip(self.columns, kept, strict=True) if keep]
        return Table(columns, [*map(pick, self.rows)], [*map(pick, self.teachers)])

    def markdown(self) -> str:
        """As a pipe table; nothing in a cell can break out of it."""
        lines = [self.header, ["---"] * len(self.columns), *self.lines]
        return "".join(f"| {' | '.join(map(literal, line))} |\n" for line in lines)

    def write_csv(self, file: Path) -> None:
        """Write the cells as they are."""
        header = [name.replace("\n", " ") for name in self.header]
        write_csv(file, [header, *self.lines])


def write_csv(file: Path, lines: Iterable[Sequence[object]]) -> None:
    """Write lines of cells; None is an empty cell."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(lines)


def literal(text: str) -> str:
    """Text that Markdown shows as it is."""
    # underscores inside words are literal in CommonMark, and names are full of them
    for sign in "\\`*[]":
        text = text.replace(sign, f"\\{sign}")
    return escape(text, quote=False).replace("|", "&#124;").replace("\n", "<br>")


def two_lines(*lines: str) -> str:
    return "\n".join(line for line in lines if line)


def percents(share: float) -> str:
    """A share in percent, without the sign."""
    return number(share, "%")


def spread(summary: "Summary | None", unit: Unit = "%") -> str:
    """``97.73 ± 0.12``: mean and standard deviation, or the mean alone of a single run."""
    known = (summary.mean, summary.sd) if summary else ()
    return " ± ".join(number(x, unit) for x in known if x is not None)


def mean_and_sd(scores: Iterable[float], unit: Unit) -> str:
    """The same from scores, and the mean alone where all scores are equal."""
    found = list(scores)
    known = [fmean(found)] if found else []
    # ± 0 beside sizes and counts would be noise
    known += [stdev(found)] if len(set(found)) > 1 else []
    return " ± ".join(number(x, unit) for x in known)


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """An interval of shares in percent, cut at 0 and 100, which Student's t exceeds."""
    if low is None or high is None:
        return ""
    return f"{percents(max(low, 0))}…{percents(min(high, 1))}"


def signed_interval(low: float | None, high: float | None) -> str:
    """An interval of a difference, as in ``+0.31…+0.62``."""
    return "" if low is None or high is None else f"{points(low)}…{points(high)}"


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
