"""A sweep's directory in, one table of its jobs out."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from kd_lightning.cli.console import console, percent
from kd_lightning.report.markdown import pipe_table
from kd_lightning.report.read import Run, jobs_of, read_run
from kd_lightning.report.settings import short_names

COLUMNS = ("val\naccuracy", "test\naccuracy", "agreement", "parameters", "seconds")


@dataclass(frozen=True)
class SweepTable:
    """Rows of text under a header; the teachers first, then a row a job.

    Attributes:
        header: names of the columns.
        rows: a list of cells for each job.
        teachers: a list of cells for each teacher that the jobs learnt from.
        failed: the names of the jobs that left no metrics.
    """

    header: list[str]
    rows: list[list[str]]
    teachers: list[list[str]]
    failed: list[str]

    def print(self) -> None:
        """Print to the terminal."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in self.header:
            table.add_column(name, overflow="fold", justify="left" if name == "job" else "right")
        for row in self.teachers:
            table.add_row(*map(Text, row), style="dim", end_section=row is self.teachers[-1])
        for row in self.rows:
            table.add_row(*map(Text, row))  # a value in brackets is no markup
        console().print(table)

    def write(self, folder: Path) -> None:
        """Leave ``sweep.csv`` and ``sweep.md`` in a folder."""
        header = [name.replace("\n", " ") for name in self.header]
        rows = [*self.teachers, *self.rows]
        with (folder / "sweep.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        (folder / "sweep.md").write_text(pipe_table(header, rows), encoding="utf-8")


def sweep_table(folder: Path, has_ended: bool = True) -> SweepTable:
    """The table of the jobs in a sweep's directory, in the order they were numbered.

    A job without metrics has failed where the sweep has ended; otherwise it may still run.
    """
    missing = "failed" if has_ended else "unfinished"
    jobs = [read_run(job) for job in jobs_of(folder)]
    swept = [key for key in dict.fromkeys(k for j in jobs for k in j.typed) if _varies(key, jobs)]
    rows = [
        [job.path.name, *(job.typed.get(k, "") for k in swept), *_figures(job.metrics, missing)]
        for job in jobs
    ]
    failed = [job.path.name for job in jobs if not job.metrics]
    header = ["job", *short_names(swept), *COLUMNS]
    return SweepTable(header, rows, _teachers([job.metrics for job in jobs], len(swept)), failed)


def _varies(key: str, jobs: list[Run]) -> bool:
    return len({job.typed.get(key) for job in jobs}) > 1


def _figures(m: dict[str, Any], missing: str) -> list[str]:
    if not m:
        return [missing, *[""] * (len(COLUMNS) - 1)]
    shares = ("val/accuracy", "test/accuracy", "test/agreement")
    accuracies = [percent(m[k]) if k in m else "" for k in shares]
    return [*accuracies, f"{m['parameters']:,}", f"{m['seconds']:.1f}"]


def _teachers(metrics: list[dict[str, Any]], swept: int) -> list[list[str]]:
    """One row for each teacher, from what the jobs saw of it."""
    rows = {}
    for m in metrics:
        if "teacher" in m:
            accuracies = [percent(m[f"{s}/teacher_accuracy"]) for s in ("val", "test")]
            cells = [*accuracies, "", f"{m['teacher_parameters']:,}", ""]
            rows[m["teacher"]] = ["teacher", *[""] * swept, *cells]
    return list(rows.values())
