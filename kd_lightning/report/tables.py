"""Tables of a report, and all of its figures as CSV."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, stdev

from kd_lightning.metrics.figures import DECLARED, Name, parse
from kd_lightning.report.compare import TEST, VAL, Report, Row, Teacher
from kd_lightning.report.table import (
    Column,
    Table,
    interval,
    mean_and_sd,
    p_value,
    percents,
    points,
    signed_interval,
    spread,
    two_lines,
    write_csv,
)
from kd_lightning.report.verdicts import teacher_name

DIFFERENCE = Column("difference, points\n95 % interval", "difference\npoints")
COLUMNS = (
    Column("n"),
    Column("validation, %\nmean ± sd, interval", "val\n%"),
    Column("test, %\nmean ± sd", "test\n%"),
    DIFFERENCE,
    Column("p\nHolm", "p\n(Holm)"),
    Column("verdict\non test", "verdict", kind="verdict"),
    Column("agreement, %\nwith teacher", "agree-\nment %", dropped=3),
    Column("parameters", "para-\nmeters", dropped=2),
    Column("time, s", "time\ns", dropped=1),
)
IN_THE_MAIN_TABLE = (VAL, "parameters")  # not repeated in the table of further figures
AGREEMENT, BIAS = "test/agreement", "val/bias"
CLASS_ACCURACY, MOST_CLASSES = "val/class_accuracy", 12  # columns of the table of classes


def main_table(report: Report) -> Table:
    """Create the main table: the groups and their comparison with their baselines."""
    names = list(report.columns.values()) or ["group"]
    rows = []
    for row in report.rows:
        values = list(row.group.values.values()) or [row.group.label]
        # A single row gets no star, which would suggest a choice among several.
        star = " ★" if row is report.best and len(report.rows) > 1 else ""
        rows.append([*values[:-1], values[-1] + star, *_cells(row)])
    teachers = [_teacher_cells(teacher, report, len(names)) for teacher in report.teachers]
    columns = [*(Column(name, kind="name") for name in names), *COLUMNS]
    return Table(columns, rows, teachers).without_empty_columns()


def _cells(row: Row) -> list[str]:
    group, delta, val = row.group, row.difference, row.val
    agreement, size, seconds = (
        list(group.scores(name).values()) for name in (AGREEMENT, "parameters", "seconds")
    )
    change = [points(delta.mean), signed_interval(delta.low, delta.high)] if delta else []
    return [
        str(len(group.runs)),
        two_lines(spread(val), interval(val.low, val.high) if val else ""),
        spread(row.test),
        two_lines(*change),
        p_value(row.p),
        row.verdict,
        percents(fmean(agreement)) if agreement else "",
        f"{fmean(size):,.0f}" if size else "",
        f"{fmean(seconds):.1f}" if seconds else "",
    ]


def _teacher_cells(teacher: Teacher, report: Report, width: int) -> list[str]:
    parameters = teacher.scores("parameters")
    count = str(len(teacher.runs)) if len(teacher.runs) > 1 else ""
    accuracies = [spread(teacher.summary(split)) for split in (VAL, TEST)]
    size = f"{fmean(parameters):,.0f}" if parameters else ""
    name = [teacher_name(teacher, report), *[""] * (width - 1)]
    return [*name, count, *accuracies, "", "", "", "", size, ""]


def further_table(report: Report) -> Table:
    """Create the table of fidelity, calibration and cost, on validation data."""
    return _figures_table(report, further_figures(report), of_teachers=True)


def errors_table(report: Report) -> Table:
    """Create the table of errors on test data; without rows if errors were not counted."""
    # The bias is a validation figure, shown here because the corrected errors depend on it.
    counted = [name for name, parsed in _figures(report) if _is_count(parsed)]
    return _figures_table(report, [*counted, BIAS] if counted else [], of_teachers=False)


def classes_table(report: Report) -> Table:
    """Create the table of the accuracy in each class, if the data name their classes."""
    named = [names for run in report.runs if (names := run.facts.get("class_names"))]
    names = [str(name) for name in named[0]] if named else []
    wanted = {f"{CLASS_ACCURACY}_{i}": name for i, name in enumerate(names[: MOST_CLASSES + 1])}
    if len(wanted) > MOST_CLASSES or any(other != named[0] for other in named):
        return Table([], [])
    return _figures_table(report, list(wanted), of_teachers=True, headers=wanted)


def further_figures(report: Report) -> list[str]:
    """Return the names of overall figures on validation data, and of costs."""
    # Test data are used once, for the verdict; everything that invites a choice is validation.
    return [
        name
        for name, parsed in _figures(report)
        if name not in IN_THE_MAIN_TABLE
        and (
            parsed.figure.kind == "cost"
            or (parsed.split == "val" and parsed.figure.kind in ("overall", "member"))
        )
    ]


def _is_count(parsed: Name) -> bool:
    return parsed.split == "test" and parsed.figure.unit == "samples"


def _figures(report: Report) -> list[tuple[str, Name]]:
    """Return the declared figures of students that any run has, in the order of declaration."""
    # Undeclared figures, which have no label or unit, appear in the CSV file only.
    names = dict.fromkeys(name for run in report.runs for name in run.metrics)
    found = [(name, parsed) for name in names if (parsed := parse(name))]
    found = [(name, parsed) for name, parsed in found if not parsed.of_teacher]
    found = [f for f in found if any(run.number(f[0]) is not None for run in report.runs)]
    return sorted(found, key=lambda f: (DECLARED.index(f[1].figure), f[1].suffix))


def _figures_table(
    report: Report,
    names: list[str],
    of_teachers: bool,
    headers: Mapping[str, str] | None = None,
) -> Table:
    """Create a table of figures: a row for each group, and for each teacher."""
    found = [(name, parsed) for name in names if (parsed := parse(name))]
    rows = [
        [row.group.label, *(_mean(row.group.scores(n).values(), p) for n, p in found)]
        for row in report.rows
        if any(row.group.scores(name) for name in names if name != BIAS)
    ]
    teachers = [
        [teacher_name(t, report), *(_mean(t.scores(n), p) for n, p in found)]
        for t in report.teachers
        if of_teachers
    ]
    titles = [headers[name] if headers else _header(parsed) for name, parsed in found]
    # Teachers without any of the figures get no row.
    columns = [Column("group", kind="name"), *(Column(title) for title in titles)]
    return Table(columns, rows, [cells for cells in teachers if any(cells[1:])])


def _mean(scores: Iterable[float], parsed: Name) -> str:
    return mean_and_sd(scores, parsed.figure.unit)


def _header(parsed: Name) -> str:
    unit = parsed.figure.unit.replace("samples", "")
    return two_lines(parsed.figure.label, ", ".join(filter(None, (parsed.suffix, unit))))


def runs_table(report: Report) -> Table:
    """Create the table of all counted runs and their directories."""
    rows = []
    for row in report.rows:
        for seed, run in row.group.runs.items():
            scores = [run.number(name) for name in (VAL, TEST)]
            shown = ["" if score is None else percents(score) for score in scores]
            rows.append([row.group.label, seed, *shown, str(run.path)])
    names = ("validation, %", "test, %")
    columns = [Column("group", kind="name"), Column("seed"), *map(Column, names)]
    return Table([*columns, Column("directory", kind="name")], rows)


def write_figures(report: Report, file: Path) -> None:
    """Write every figure of every group as CSV, unrounded, for use by other programs."""
    names = sorted({name for run in report.runs for name in run.metrics})
    # Version 0.1 also wrote the seed and other facts to metrics.json: neither declared nor split.
    names = [name for name in names if parse(name) or "/" in name]
    names = [name for name in names if any(run.number(name) is not None for run in report.runs)]
    about = ("role", "baseline", "difference", "low", "high", "p", "p_holm", "paired", "verdict")
    numbers = [f"{name} {what}" for name in names for what in ("mean", "sd")]
    lines: list[list[object]] = [[*report.columns, "n", "seeds", *about, "best", *numbers]]
    for row in report.rows:
        lines.append([*_comparison(row), row is report.best, *_numbers(row, names)])
    write_csv(file, lines)


def _comparison(row: Row) -> list[object]:
    group, delta = row.group, row.difference
    found = (delta.mean, delta.low, delta.high, delta.p) if delta else (None,) * 4
    return [
        *group.values.values(),
        len(group.runs),
        " ".join(group.runs),
        group.role,
        row.baseline.label if row.baseline else None,
        *found,
        row.p,
        delta.paired if delta else None,
        row.verdict,
    ]


def _numbers(row: Row, names: list[str]) -> list[float | None]:
    cells: list[float | None] = []
    for name in names:
        scores = list(row.group.scores(name).values())
        cells.append(fmean(scores) if scores else None)
        cells.append(stdev(scores) if len(scores) > 1 else None)
    return cells
