"""Comparison of groups with their baselines: the content of a report, without its format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kd_lightning.metrics.figures import TEACHER
from kd_lightning.report.exported import Exported, read_exported
from kd_lightning.report.groups import Group, Groups, find_baselines, group_runs
from kd_lightning.report.statistics import (
    Difference,
    Summary,
    difference,
    holm,
    summarize,
    verdict,
)
from kd_lightning.utils.run_directory import RunDirectory, finite

VAL, TEST = "val/accuracy", "test/accuracy"  # for choices, and for the differences reported

K = TypeVar("K")


@dataclass(frozen=True, eq=False)
class Row:
    """Group and its comparison with a baseline.

    Attributes:
        group: the runs.
        baseline: the group that this one is compared with; a baseline is its own.
        val: validation accuracy.
        test: test accuracy.
        difference: test accuracy minus that of the baseline.
        p: p-value of the difference, Holm-adjusted over the report.
        verdict: ``helps``, ``baseline``, ``too few seeds`` …
    """

    group: Group
    baseline: Group | None
    val: Summary | None
    test: Summary | None
    difference: Difference | None
    p: float | None
    verdict: str

    @property
    def is_baseline(self) -> bool:
        return self.baseline is self.group

    @property
    def is_about_distillation(self) -> bool:
        """Whether a distilled student is compared with students trained on labels alone."""
        return self.group.distils and self.baseline is not None and self.baseline.is_baseline


@dataclass(frozen=True, eq=False)
class Teacher:
    """Teacher of one or more groups; several if the runs of a group have different teachers.

    Attributes:
        runs: for each teacher, a student's run, which records the teacher's figures.
        groups: labels of the groups it taught.
    """

    runs: dict[str, RunDirectory]
    groups: list[str]

    def scores(self, name: str) -> list[float]:
        """Return a figure of each teacher, given the name of the student's figure."""
        # Measured beside the student if possible, else as recorded when the teacher was trained.
        split, slash, figure = name.rpartition("/")
        full = f"{split}{slash}{TEACHER}{figure}"
        found = [_first(run.number(full), _own(run, name)) for run in self.runs.values()]
        return [score for score in found if score is not None]

    def summary(self, name: str) -> Summary | None:
        scores = self.scores(name)
        return summarize(scores) if scores else None


def _own(run: RunDirectory, name: str) -> float | None:
    """Return a figure from the teacher's own run, as recorded in the student's run."""
    figures = run.facts.get("teacher_figures")
    return finite(figures.get(name)) if isinstance(figures, dict) else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


@dataclass(frozen=True, eq=False)
class Report:
    """Content of a report.

    Attributes:
        columns: keys that name the groups, and their short names.
        rows: the groups.
        teachers: teachers of all groups.
        unfinished: runs without figures.
        repeats: runs replaced by a later run of the same group and seed.
        exported: exported files of the groups and their teachers.
        named: baseline chosen with ``--baseline``; empty for students trained on labels alone.
    """

    columns: dict[str, str]
    rows: list[Row]
    teachers: list[Teacher]
    unfinished: list[RunDirectory]
    repeats: list[RunDirectory]
    exported: Exported
    named: str = ""

    @property
    def runs(self) -> list[RunDirectory]:
        """All runs that are counted."""
        return [run for row in self.rows for run in row.group.runs.values()]

    @property
    def baseline(self) -> str:
        """Name of the baseline, for use in sentences."""
        return self.named or "the baseline"

    @property
    def compared(self) -> list[Row]:
        return [row for row in self.rows if row.difference]

    @property
    def asked(self) -> list[Row]:
        """Comparisons for the headline: those of distilled students, if there are any."""
        # A control with the best result must not decide whether distillation helped.
        return [row for row in self.compared if row.group.distils] or self.compared

    @property
    def has_one_baseline(self) -> bool:
        """Whether all comparisons for the headline have the same baseline."""
        return len({row.baseline for row in self.asked}) == 1

    @property
    def best(self) -> Row | None:
        """Best student, chosen on validation data."""
        return best_on_validation([row for row in self.rows if row.group.role != "teacher"])

    @property
    def lead(self) -> Row | None:
        """Row of the headline: the best on validation, or the clearest of several baselines."""
        # Choosing on test data would bias the difference that is reported.
        return best_on_validation(self.asked) if self.has_one_baseline else clearest(self.asked)


def build_report(runs: Sequence[RunDirectory], named: Sequence[str] = ()) -> Report:
    """Group the runs, find the baselines and compare.

    Args:
        runs: the runs, finished or not.
        named: ``key=value`` of the groups to compare with; by default students trained on
            labels alone.
    """
    groups = group_runs(runs)
    return Report(
        groups.columns,
        _compare(groups, find_baselines(groups, named)),
        _teachers(groups.groups),
        [run for run in runs if not (run.is_finished or run.same_as)],
        groups.repeats,
        read_exported(groups.groups),
        ", ".join(named),
    )


def best_on_validation(rows: Sequence[Row]) -> Row | None:
    """Return the row with the highest mean validation accuracy."""
    scored = [(row.val.mean, row) for row in rows if row.val]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def clearest(rows: Sequence[Row]) -> Row | None:
    """Return the row with the smallest p-value; ties are broken by the largest difference."""
    found = [
        ((row.p, -abs(d.mean)), row) for row in rows if (d := row.difference) and row.p is not None
    ]
    return min(found, key=lambda pair: pair[0])[1] if found else best_on_validation(rows)


def adjusted(found: Mapping[K, Difference | None]) -> dict[K, float]:
    """Return the p-values of differences, Holm-adjusted for their number."""
    # Comparisons of too few seeds have no p-value and do not count: they can claim nothing.
    raw = {key: d.p for key, d in found.items() if d and d.p is not None}
    return dict(zip(raw, holm(list(raw.values())), strict=True))


def difference_of(group: Group, other: Group | None) -> Difference | None:
    """Return the difference in test accuracy; None if there is nothing to compare."""
    if other is None or other is group:
        return None
    ours, theirs = group.scores(TEST), other.scores(TEST)
    return difference(ours, theirs) if ours and theirs else None


def _compare(groups: Groups, baselines: dict[Group, Group]) -> list[Row]:
    found = {group: difference_of(group, baselines.get(group)) for group in groups.groups}
    # All verdicts of a report are one family of tests: each further comparison costs power.
    p_values, rows = adjusted(found), []
    for group, delta in found.items():
        baseline, p = baselines.get(group), p_values.get(group)
        said = "baseline" if baseline is group else "no baseline"
        said = verdict(delta, p) if delta else said
        val, test = (_summary(group, name) for name in (VAL, TEST))
        rows.append(Row(group, baseline, val, test, delta, p, said))
    return rows


def _teachers(groups: Sequence[Group]) -> list[Teacher]:
    found: list[Teacher] = []
    for group in groups:
        own = {t: run for run in group.runs.values() if (t := run.facts["teacher"])}
        # Groups that share one teacher share all of them, which differ only in their seed.
        same = [teacher for teacher in found if teacher.runs.keys() & own.keys()]
        if same:
            same[0].runs.update(own)
            same[0].groups.append(group.label)
        elif own:
            found.append(Teacher(own, [group.label]))
    return found


def _summary(group: Group, name: str) -> Summary | None:
    scores = group.scores(name)
    return summarize(list(scores.values())) if scores else None
