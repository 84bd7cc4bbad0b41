"""Printing: the terminal, and tables in it."""

import os
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from kd_lightning.report.read import Convert, read_runs
from kd_lightning.report.sweep import chain_table, run_table
from kd_lightning.report.table import Table

WRAPPED = 10  # characters of a name or a verdict that stay in one line


def print_run(run_dir: Path, convert: Convert | None = None) -> None:
    """Print the figures of a finished run, beside its teacher's."""
    (run,) = read_runs([run_dir], convert)
    print_table(run_table(run))
    print_path("run", run_dir)


def print_chain(run_dir: Path, convert: Convert | None = None) -> None:
    """Print the figures of each link of a finished chain, and of all links together."""
    (run,) = read_runs([run_dir], convert)
    print_table(chain_table(run, convert))
    print_path("chain", run_dir)


def print_table(table: Table) -> None:
    """Print a table without the columns of least weight that the terminal has no room for."""
    terminal = console()
    steps = max((column.dropped for column in table.columns), default=0)
    narrower = [_rich(table.narrowed(step)) for step in range(steps + 1)]
    fitting = (rich for rich in narrower if _least_width(rich) <= terminal.width)
    # where none fits, the terminal itself wraps the lines: cutting them would hide figures
    terminal.print(next(fitting, narrower[-1]), crop=False)


def print_path(name: str, path: Path) -> None:
    """Print ``name: path`` in one line, so that the path can be copied."""
    console().print(f"{name}: {path}", soft_wrap=True, highlight=False, markup=False)


def print_line(line: str, style: str = "none") -> None:
    """Print a sentence; what looks like markup in it is text."""
    console().print(line, markup=False, highlight=False, style=style)


def console() -> Console:
    """The terminal at its own width; a file or a pipe at 120 columns, or COLUMNS."""
    terminal = Console()
    return terminal if terminal.is_terminal or "COLUMNS" in os.environ else Console(width=120)


def _rich(table: Table) -> RichTable:
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
    """The least width of a table, with two blanks between columns."""
    return sum(2 + (column.min_width or 0) for column in rich.columns)
