"""Each group beside its control: what a report says, before it is put in any form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kd_lightning.report.groups import Group, Groups, find_controls, group_runs
from kd_lightning.report.read import Run
from kd_lightning.report.settings import is_taught, is_teacher, label_only, placebo
from kd_lightning.report.stats import Difference, Summary, difference, holm, summarize, verdict

VAL, TEST = "val/accuracy", "test/accuracy"

K = TypeVar("K")


@dataclass(frozen=True, eq=False)
class Row:
    """A group and how it compares.

    Attributes:
        group: its runs.
        control: what it is compared with; itself where it is a control.
        val: its validation accuracy.
        test: its test accuracy.
        difference: test accuracy less the control's.
        p: of that difference, Holm-adjusted over the report.
        verdict: in words.
    """

    group: Group
    control: Group | None
    val: Summary | None
    test: Summary | None
    difference: Difference | None
    p: float | None
    verdict: str

    @property
    def is_control(self) -> bool:
        return self.control is self.group


@dataclass(frozen=True, eq=False)
class Teacher:
    """One teacher, or several that taught the same groups, each another seed.

    Attributes:
        runs: a student's run of each, which knows its teacher's figures.
        pupils: the labels of the groups.
    """

    runs: dict[str, Run]
    pupils: list[str]

    def scores(self, name: str) -> list[float]:
        """A figure of each, named as a student's is: its own has ``teacher_`` before it."""
        split, slash, figure = name.rpartition("/")
        found = (run.number(f"{split}{slash}teacher_{figure}") for run in self.runs.values())
        return [score for score in found if score is not None]

    def summary(self, name: str) -> Summary | None:
        scores = self.scores(name)
        return summarize(scores) if scores else None


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that is told.

    Attributes:
        columns: what was swept, and its short names.
        rows: the groups.
        teachers: of all groups.
        unfinished: runs without figures.
        repeats: runs that a later one of the same group and seed replaces.
        named: how ``--control`` names the control; empty for labels alone.
    """

    columns: dict[str, str]
    rows: list[Row]
    teachers: list[Teacher]
    unfinished: list[Run]
    repeats: list[Run]
    named: str = ""

    @property
    def runs(self) -> list[Run]:
        """All that were counted."""
        return [run for row in self.rows for run in row.group.runs.values()]

    @property
    def control(self) -> str:
        """What the others are compared with."""
        return self.named or "labels alone"

    @property
    def compared(self) -> list[Row]:
        return [row for row in self.rows if row.difference]

    @property
    def asked(self) -> list[Row]:
        """The comparisons that the headline is about: those that distil, if any do."""
        return [row for row in self.compared if distils(row.group)] or self.compared

    @property
    def has_one_control(self) -> bool:
        """Whether all that the headline is about are rivals in one task."""
        return len({row.control for row in self.asked}) == 1

    @property
    def best(self) -> Row | None:
        """Picked on validation, among all students."""
        return best_on_validation([row for row in self.rows if not is_teacher(row.group.first)])

    @property
    def lead(self) -> Row | None:
        """The row of the headline: picked on validation, or the clearest of several controls."""
        return best_on_validation(self.asked) if self.has_one_control else clearest(self.asked)


def build_report(runs: Sequence[Run], named: Sequence[str] = ()) -> Report:
    """Group the runs, find the controls and compare."""
    groups = group_runs(runs)
    unfinished = [run for run in runs if not run.metrics]
    rows = _compare(groups, find_controls(groups, named))
    teachers = _teachers(groups.groups)
    named_control = ", ".join(named)
    return Report(groups.columns, rows, teachers, unfinished, groups.repeats, named_control)


def distils(group: Group) -> bool:
    """Whether it learnt from a teacher that has something to teach."""
    return is_taught(group.first) and not placebo(group.first)


def is_about_distillation(row: Row) -> bool:
    """Whether a row's verdict says if distillation helped."""
    control = row.control
    return (
        distils(row.group) and control is not None and all(map(label_only, control.runs.values()))
    )


def best_on_validation(rows: list[Row]) -> Row | None:
    """The row with the highest mean validation accuracy."""
    scored = [(row.val.mean, row) for row in rows if row.val]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def clearest(rows: list[Row]) -> Row | None:
    """The row with the smallest p, of equals that with the largest difference."""
    found = [
        ((row.p, -abs(d.mean)), row) for row in rows if (d := row.difference) and row.p is not None
    ]
    return min(found, key=lambda pair: pair[0])[1] if found else best_on_validation(rows)


def adjusted(found: Mapping[K, Difference | None]) -> dict[K, float]:
    """The p-values of differences, Holm-adjusted for their number."""
    raw = {key: d.p for key, d in found.items() if d and d.p is not None}
    return dict(zip(raw, holm(list(raw.values())), strict=True))


def _compare(groups: Groups, controls: dict[Group, Group]) -> list[Row]:
    found = {g: difference_of(g, controls.get(g)) for g in groups.groups}
    p_values, rows = adjusted(found), []
    for group, delta in found.items():
        control, p = controls.get(group), p_values.get(group)
        words = verdict(delta, p) if delta else "control" if control is group else "no control"
        val, test = (_summary(group, name) for name in (VAL, TEST))
        rows.append(Row(group, control, val, test, delta, p, words))
    return rows


def _teachers(groups: Sequence[Group]) -> list[Teacher]:
    found: list[Teacher] = []
    for group in groups:
        own = {run.teacher: run for run in group.runs.values() if run.teacher}
        same = [teacher for teacher in found if teacher.runs.keys() & own.keys()]
        if same:
            same[0].runs.update(own)
            same[0].pupils.append(group.label)
        elif own:
            found.append(Teacher(own, [group.label]))
    return found


def difference_of(group: Group, control: Group | None) -> Difference | None:
    """In test accuracy; None where there is nothing to compare."""
    if control is None or control is group:
        return None
    ours, theirs = group.scores(TEST), control.scores(TEST)
    return difference(ours, theirs) if ours and theirs else None


def _summary(group: Group, name: str) -> Summary | None:
    scores = group.scores(name)
    return summarize(list(scores.values())) if scores else None
