"""Output to the terminal: tables, paths, sentences and errors.

Names, overrides and messages may come from files of others: their control characters are shown as
escapes.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from kd_lightning.report.read import Convert, read_runs
from kd_lightning.report.sweep import chain_table, run_table
from kd_lightning.report.table import Table
from kd_lightning.utils.text import one_line, printable

WRAPPED = 10  # smallest width of a column of names or verdicts, in characters


def print_run(run_dir: Path, convert: Convert | None = None) -> None:
    """Print the figures of a finished run and of its teacher."""
    (run,) = read_runs([run_dir], convert)
    print_table(run_table(run))
    if "test/agreement" in run.metrics:
        print_line("agreement: how often both networks predict the same class", style="dim")
    print_path("run", run_dir)


def print_chain(run_dir: Path, convert: Convert | None = None) -> None:
    """Print the figures of each link of a finished chain, and of their ensemble."""
    (run,) = read_runs([run_dir], convert)
    print_table(chain_table(run, convert))
    print_path("chain", run_dir)


def print_next(path: Path) -> None:
    """Print the command that reports on a finished run or sweep."""
    print_path("report", f"kd-report {shlex.quote(str(path))} --out report")


def print_table(table: Table) -> None:
    """Print a table, dropping the least important columns if the terminal is too narrow."""
    terminal = console()
    steps = max((column.dropped for column in table.columns), default=0)
    narrower = [_rich(table.narrowed(step)) for step in range(steps + 1)]
    fitting = (rich for rich in narrower if _least_width(rich) <= terminal.width)
    # If no variant fits, the terminal wraps the lines: cropping them would hide figures.
    terminal.print(next(fitting, narrower[-1]), crop=False)


def print_path(name: str, path: Path | str) -> None:
    """Print ``name: path`` without line breaks, so the path can be copied."""
    console().print(printable(f"{name}: {path}"), soft_wrap=True, highlight=False, markup=False)


def print_line(line: str, style: str = "none") -> None:
    """Print a sentence; square brackets in it are not interpreted as markup."""
    console().print(printable(line), markup=False, highlight=False, style=style)


def print_error(error: object) -> None:
    """Print an error in one line to stderr."""
    print(f"error: {one_line(error)}", file=sys.stderr, flush=True)


def fail(error: object) -> NoReturn:
    """Exit with code 1 after printing an error in one line."""
    sys.exit(f"error: {one_line(error)}")


def console() -> Console:
    """Return the console: at the terminal's width, or at 120 columns (or COLUMNS) in a pipe."""
    # Rich's default without a terminal is 80 columns, in which most tables would wrap.
    terminal = Console()
    return terminal if terminal.is_terminal or "COLUMNS" in os.environ else Console(width=120)


def _rich(table: Table) -> RichTable:
    table = table.printable()
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(table.columns):
        header = column.short or column.header
        lines = [
            line for cell in (header, *(row[i] for row in table.lines)) for line in cell.split("\n")
        ]
        is_number = column.kind == "number"
        width = max(map(len, lines))
        rich.add_column(
            Text(header),
            overflow="fold",
            justify="left" if column.kind == "name" else "right",
            no_wrap=is_number,
            min_width=width if is_number else min(width, WRAPPED),
        )
    for row in table.teachers:
        last = row is table.teachers[-1] and len(table.rows) > 1
        rich.add_row(*map(Text, row), style="dim", end_section=last)
    for row in table.rows:
        rich.add_row(*map(Text, row))
    return rich


def _least_width(rich: RichTable) -> int:
    """Return the smallest width of a table, with two spaces between columns."""
    return sum(2 + (column.min_width or 0) for column in rich.columns)
