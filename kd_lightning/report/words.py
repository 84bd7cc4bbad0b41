"""Figures as people read them, and the notes of a report."""

from kd_lightning.report.compare import Report, Row, Teacher
from kd_lightning.report.groups import Group
from kd_lightning.report.stats import MIN_SEEDS, Summary

METHOD = (
    "A verdict is about test accuracy: every group that was run is compared with its control, "
    "seed by seed, and p is Holm-corrected for their number; intervals are 95 %, each on its own. "
    "The best group (★) is picked on validation, never on test."
)


def spread(summary: Summary | None) -> str:
    """``97.73 ± 0.12`` in percent, or without the spread of a single run."""
    if summary is None:
        return ""
    known = (x for x in (summary.mean, summary.sd) if x is not None)
    return " ± ".join(map(percents, known))


def percents(share: float) -> str:
    """A share in percent, where the unit is said elsewhere."""
    return f"{100 * share:.2f}"


def interval(low: float | None, high: float | None, signed: bool = False) -> str:
    """``+0.31…+0.62``, in percent; nothing where there is none."""
    if low is None or high is None:
        return ""
    if signed:
        return f"{points(low)}…{points(high)}"
    return f"{percents(max(low, 0))}…{percents(min(high, 1))}"  # t knows no end at 100 %


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", "−")


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def mean(group: Group, name: str = "test/accuracy") -> float:
    scores = group.scores(name).values()
    return sum(scores) / len(scores) if scores else float("nan")


def notes(report: Report) -> list[str]:
    """What a reader must know to trust the table."""
    found = []
    unpaired = [row.group.label for row in report.compared if _welch(row)]
    if partly := [row.group.label for row in report.compared if _partly_paired(row)]:
        found.append(f"Compared over the seeds shared with the control: {'; '.join(partly)}.")
    if unpaired:
        found.append(
            f"Compared unpaired (Welch), since fewer than {MIN_SEEDS} seeds are "
            f"the control's: {'; '.join(unpaired)}."
        )
    if len(report.teachers) > 1:
        taught = (f"{teacher_name(t, report)}: {'; '.join(t.pupils)}" for t in report.teachers)
        found.append(f"Who taught whom: {' / '.join(taught)}.")
    if report.repeats:
        where = ", ".join(str(run.path) for run in report.repeats)
        found.append(f"Left out, as a later run has the same settings and seed: {where}.")
    commits = sorted({str(c) for run in report.runs if (c := run.metrics.get("commit"))})
    if len(commits) > 1:
        found.append(f"The runs are of several versions of the code: {', '.join(commits)}.")
    if report.unfinished:
        where = ", ".join(str(run.path) for run in report.unfinished)
        found.append(f"Unfinished or failed, and left out: {where}.")
    return found


def teacher_name(teacher: Teacher, report: Report) -> str:
    many = len(report.teachers) > 1
    return f"teacher {report.teachers.index(teacher) + 1}" if many else "teacher"


def _welch(row: Row) -> bool:
    return row.difference is not None and not row.difference.paired


def _partly_paired(row: Row) -> bool:
    delta, control = row.difference, row.control
    if delta is None or control is None or not delta.paired:
        return False
    return delta.n < max(len(row.group.runs), len(control.runs))


def common(report: Report) -> str:
    """What was typed for every run alike."""
    runs = report.runs
    typed = runs[0].typed.items() if runs else ()
    return " ".join(f"{k}={v}" for k, v in typed if all(r.typed.get(k) == v for r in runs))
