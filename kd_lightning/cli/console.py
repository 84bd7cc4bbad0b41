"""The small table at the end of a run."""

import os
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from kd_lightning.report.read import read_run


def print_run(run_dir: Path) -> None:
    """Print who was trained, from whom, and what came of it."""
    metrics = read_run(run_dir).metrics
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "parameters", "test accuracy", "agreement", "compression", "seconds"):
        table.add_column(name, justify="right" if name else "left")
    if "teacher" in metrics:
        accuracy = percent(metrics["test/teacher_accuracy"])
        table.add_row("teacher", f"{metrics['teacher_parameters']:,}", accuracy)
    agreement = percent(metrics["test/agreement"]) if "teacher" in metrics else ""
    compression = f"{metrics['compression']:.1f}×" if "teacher" in metrics else ""
    table.add_row(
        metrics["role"],
        f"{metrics['parameters']:,}",
        percent(metrics["test/accuracy"]),
        agreement,
        compression,
        f"{metrics['seconds']:.1f}",
    )
    console().print(table)
    console().print(f"run: {run_dir}", soft_wrap=True, highlight=False)


def console() -> Console:
    """The terminal at its own width; a file or a pipe at 120 columns, or COLUMNS."""
    terminal = Console()
    return terminal if terminal.is_terminal or "COLUMNS" in os.environ else Console(width=120)


def percent(share: float) -> str:
    """A share of 0…1 as a percentage with two decimals."""
    return f"{100 * share:.2f} %"
