"""A sweep's directory in, one table of its jobs out."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.table import Table

from kd_lightning.report.run import console, percent

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
            table.add_row(*row, style="dim", end_section=row is self.teachers[-1])
        for row in self.rows:
            table.add_row(*row)
        console().print(table)

    def write(self, folder: Path) -> None:
        """Leave ``sweep.csv`` and ``sweep.md`` in a folder."""
        header = [name.replace("\n", " ") for name in self.header]
        rows = [header, *self.teachers, *self.rows]
        with (folder / "sweep.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        rows.insert(1, ["---"] * len(self.header))
        (folder / "sweep.md").write_text("".join(f"| {' | '.join(r)} |\n" for r in rows))


def sweep_table(folder: Path) -> SweepTable:
    """The table of the jobs in a sweep's directory, in the order they were numbered."""
    jobs = sorted((p.parent.parent for p in folder.glob("*/.hydra/overrides.yaml")), key=_number)
    overrides = [_overrides(job) for job in jobs]
    metrics = [_metrics(job) for job in jobs]
    swept = [k for k in dict.fromkeys(k for o in overrides for k in o) if _varies(k, overrides)]
    rows = [
        [job.name, *(o.get(k, "") for k in swept), *_figures(m)]
        for job, o, m in zip(jobs, overrides, metrics, strict=True)
    ]
    failed = [job.name for job, m in zip(jobs, metrics, strict=True) if not m]
    header = ["job", *_short(swept), *COLUMNS]
    return SweepTable(header, rows, _teachers(metrics, len(swept)), failed)


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name), "") if job.name.isdigit() else (-1, job.name)


def _overrides(job: Path) -> dict[str, str]:
    lines = yaml.safe_load((job / ".hydra" / "overrides.yaml").read_text()) or []
    pairs = (line.lstrip("+~").partition("=") for line in lines)
    return {key: value for key, _, value in pairs}


def _metrics(job: Path) -> dict[str, Any]:
    file = job / "metrics.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _varies(key: str, overrides: list[dict[str, str]]) -> bool:
    return len({o.get(key) for o in overrides}) > 1


def _short(keys: list[str]) -> list[str]:
    """``temperature`` for ``method.temperature``, unless another key ends alike."""
    ends = [k.rpartition(".")[2] for k in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def _figures(m: dict[str, Any]) -> list[str]:
    if not m:
        return ["failed", *[""] * (len(COLUMNS) - 1)]
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
