"""Each group beside its baseline: what a report says, before it is given any form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kd_lightning.metrics.figures import TEACHER
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

VAL, TEST = "val/accuracy", "test/accuracy"

K = TypeVar("K")


@dataclass(frozen=True, eq=False)
class Row:
    """A group and how it compares.

    Attributes:
        group: its runs.
        baseline: the group it is compared with; itself where it is a baseline.
        val: its validation accuracy.
        test: its test accuracy.
        difference: test accuracy less the baseline's.
        p: of that difference, Holm-adjusted over the report.
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
        """Whether the verdict says if distillation helps: a student against labels alone."""
        return self.group.distils and self.baseline is not None and self.baseline.is_baseline


@dataclass(frozen=True, eq=False)
class Teacher:
    """One teacher, or several that taught the same groups, each with another seed.

    Attributes:
        runs: for each teacher a student's run, which records the teacher's figures.
        groups: the labels of the groups it taught.
    """

    runs: dict[str, RunDirectory]
    groups: list[str]

    def scores(self, name: str) -> list[float]:
        """A figure of each teacher, by the name of the student's figure."""
        split, slash, figure = name.rpartition("/")
        full = f"{split}{slash}{TEACHER}{figure}"
        found = [_first(run.number(full), _own(run, name)) for run in self.runs.values()]
        return [score for score in found if score is not None]

    def summary(self, name: str) -> Summary | None:
        scores = self.scores(name)
        return summarize(scores) if scores else None


def _own(run: RunDirectory, name: str) -> float | None:
    """A figure of the teacher's own run directory, as the student's run recorded it."""
    figures = run.facts.get("teacher_figures")
    return finite(figures.get(name)) if isinstance(figures, dict) else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


@dataclass(frozen=True, eq=False)
class Report:
    """Everything a report says.

    Attributes:
        columns: the keys that name the groups, and their short names.
        rows: the groups.
        teachers: of all groups.
        unfinished: runs without figures.
        repeats: runs that a later one of the same group and seed replaces.
        named: the baseline that was named with ``--baseline``; empty for labels alone.
    """

    columns: dict[str, str]
    rows: list[Row]
    teachers: list[Teacher]
    unfinished: list[RunDirectory]
    repeats: list[RunDirectory]
    named: str = ""

    @property
    def runs(self) -> list[RunDirectory]:
        """All that were counted."""
        return [run for row in self.rows for run in row.group.runs.values()]

    @property
    def baseline(self) -> str:
        """The name of the baseline in sentences."""
        return self.named or "the baseline"

    @property
    def compared(self) -> list[Row]:
        return [row for row in self.rows if row.difference]

    @property
    def asked(self) -> list[Row]:
        """The comparisons that the headline is about: those that distil, if any do."""
        # a control that does best must not decide whether distillation helped
        return [row for row in self.compared if row.group.distils] or self.compared

    @property
    def has_one_baseline(self) -> bool:
        """Whether everything that the headline is about is compared with the same group."""
        return len({row.baseline for row in self.asked}) == 1

    @property
    def best(self) -> Row | None:
        """The best student, chosen on validation data."""
        return best_on_validation([row for row in self.rows if row.group.role != "teacher"])

    @property
    def lead(self) -> Row | None:
        """The row of the headline: chosen on validation, or the clearest of several baselines."""
        # choosing on test data would bias the very difference that is reported
        return best_on_validation(self.asked) if self.has_one_baseline else clearest(self.asked)


def build_report(runs: Sequence[RunDirectory], named: Sequence[str] = ()) -> Report:
    """Group the runs, find the baselines and compare.

    Args:
        runs: finished or not.
        named: ``key=value`` of the groups to compare with, instead of labels alone.
    """
    groups = group_runs(runs)
    return Report(
        groups.columns,
        _compare(groups, find_baselines(groups, named)),
        _teachers(groups.groups),
        [run for run in runs if not run.is_finished],
        groups.repeats,
        ", ".join(named),
    )


def best_on_validation(rows: Sequence[Row]) -> Row | None:
    """The row with the highest mean validation accuracy."""
    scored = [(row.val.mean, row) for row in rows if row.val]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def clearest(rows: Sequence[Row]) -> Row | None:
    """The row with the smallest p, of equals that with the largest difference."""
    found = [
        ((row.p, -abs(d.mean)), row) for row in rows if (d := row.difference) and row.p is not None
    ]
    return min(found, key=lambda pair: pair[0])[1] if found else best_on_validation(rows)


def adjusted(found: Mapping[K, Difference | None]) -> dict[K, float]:
    """The p-values of differences, Holm-adjusted for their number."""
    raw = {key: d.p for key, d in found.items() if d and d.p is not None}
    return dict(zip(raw, holm(list(raw.values())), strict=True))


def difference_of(group: Group, other: Group | None) -> Difference | None:
    """The difference in test accuracy; None where there is nothing to compare."""
    if other is None or other is group:
        return None
    ours, theirs = group.scores(TEST), other.scores(TEST)
    return difference(ours, theirs) if ours and theirs else None


def _compare(groups: Groups, baselines: dict[Group, Group]) -> list[Row]:
    found = {group: difference_of(group, baselines.get(group)) for group in groups.groups}
    # all verdicts of a report are one family: each further comparison costs power
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
        # groups that share one teacher share them all: those of the other seeds
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
