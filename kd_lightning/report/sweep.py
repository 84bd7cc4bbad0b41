"""Tables of a run, a chain or a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kd_lightning.metrics.figures import TEACHER, parse, show
from kd_lightning.report.groups import as_text, short_names
from kd_lightning.report.read import Convert, read_runs
from kd_lightning.report.table import Column, Table
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import LINKS, RunDirectory, jobs_of

SHOWN = ("val/accuracy", "test/accuracy", "test/agreement", "parameters", "seconds")


@dataclass(frozen=True)
class SweepTable(Table):
    """Table of a sweep's jobs, in the order of their numbers.

    Attributes:
        failed: names of the jobs without figures.
    """

    failed: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write ``sweep.csv`` and ``sweep.md``."""
        self.write_csv(folder / "sweep.csv")
        (folder / "sweep.md").write_text(self.markdown(), encoding="utf-8")


def sweep_table(folder: Path, has_ended: bool = True, convert: Convert | None = None) -> SweepTable:
    """Create the table of a sweep.

    Args:
        folder: the sweep directory.
        has_ended: whether jobs without figures count as failed; otherwise they may be running.
        convert: returns the facts of a directory of version 0.1, which has no ``run.json``.
    """
    jobs = read_runs([folder], convert) if jobs_of(folder) else []
    typed = dict.fromkeys(key for job in jobs for key in job.overrides)
    swept = [key for key in typed if len({_typed(job, key) for job in jobs}) > 1]
    rows = [
        [
            job.path.name,
            *(_typed(job, key) for key in swept),
            *(_cells(job, SHOWN) if job.is_finished else _missing(job, has_ended)),
        ]
        for job in jobs
    ]
    # One row per teacher, not per job.
    teachers = {
        job.facts["teacher"]: ["teacher", *[""] * len(swept), *_teacher_cells(job, SHOWN)]
        for job in jobs
        # Untrained teachers have no name, so their rows would be mistaken for trained ones.
        if job.is_finished and job.facts["teacher"] and _has_teacher(job)
    }
    names = [Column(name, kind="name") for name in ("job", *short_names(swept))]
    failed = [job.path.name for job in jobs if not job.is_finished and not job.same_as]
    return SweepTable([*names, *_columns(SHOWN)], rows, list(teachers.values()), failed)


def _missing(job: RunDirectory, has_ended: bool) -> list[str]:
    """The cells of a job without figures of its own."""
    reason = f"as job {job.same_as}" if job.same_as else "failed" if has_ended else "unfinished"
    return [reason, *[""] * (len(SHOWN) - 1)]


def run_table(run: RunDirectory) -> Table:
    """Create the table of a single run: the network, and its teacher if it has one."""
    names = ("parameters", "test/accuracy", "test/agreement", "compression", "seconds")
    teachers = [["teacher", *_teacher_cells(run, names)]] if _has_teacher(run) else []
    columns = [Column("", kind="name"), *_columns(names)]
    return Table(columns, [[run.role, *_cells(run, names)]], teachers)


def chain_table(run: RunDirectory, convert: Convert | None = None) -> Table:
    """Create the table of a chain: a row per link, and one for the ensemble of all links."""
    names = ("parameters", *SHOWN[:3], "seconds")
    links = run.facts["links"]
    folders = [run.path / LINKS / str(i) for i in range(len(links))]
    found = read_runs(folders, convert)
    teachers = [["teacher", *_teacher_cells(found[0], names)]] if _has_teacher(found[0]) else []
    rows = [[name, *_cells(link, names)] for name, link in zip(links, found, strict=True)]
    size = sum(_number(link, "parameters") for link in found)
    accuracies = [_shown(run, f"{split}/ensemble_accuracy") for split in ("val", "test")]
    rows.append(["all links together", show("parameters", size), *accuracies, "", ""])
    return Table([Column("link", kind="name"), *_columns(names)], rows, teachers)


def _typed(job: RunDirectory, key: str) -> str:
    return as_text(job.overrides.get(key, ""))


def _columns(names: Sequence[str]) -> list[Column]:
    found = []
    for name in names:
        parsed = parse(name)
        assert parsed  # all names in this module are declared figures
        label, unit = parsed.figure.label, parsed.figure.unit
        # Agreement is shown for test data only, so its split need not be named.
        split = parsed.split if label == "accuracy" else ""
        found.append(Column(f"{split} {label}{', s' if unit == 's' else ''}".strip()))
    return found


def _cells(run: RunDirectory, names: Sequence[str]) -> list[str]:
    """Format a run's figures; only those that need a teacher may be missing."""
    optional = ("test/agreement", "compression")
    kept = [name in run.metrics or name not in optional for name in names]
    return [_shown(run, name) if keep else "" for name, keep in zip(names, kept, strict=True)]


def _shown(run: RunDirectory, name: str) -> str:
    return show(name, _number(run, name))


def _number(run: RunDirectory, name: str) -> float:
    value = run.metrics[name]
    if not isinstance(value, int | float):
        raise UserError(f"{run.metrics.file}: {name!r} is {value!r:.80}, not a number")
    return value


def _has_teacher(run: RunDirectory) -> bool:
    """Return whether a teacher was measured, trained or untrained."""
    return f"test/{TEACHER}accuracy" in run.metrics


def _teacher_cells(run: RunDirectory, names: Sequence[str]) -> list[str]:
    own = []
    for name in names:
        split, slash, figure = name.rpartition("/")
        full = f"{split}{slash}{TEACHER}{figure}"
        own.append(_shown(run, full) if full in run.metrics else "")
    return own
