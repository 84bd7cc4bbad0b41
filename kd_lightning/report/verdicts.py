"""Sentences of a report: the headline, the comparison with controls, and the notes."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from kd_lightning.metrics.figures import with_unit
from kd_lightning.report.compare import TEST, Report, Row, Teacher, adjusted, difference_of
from kd_lightning.report.groups import as_text
from kd_lightning.report.statistics import (
    HELPS,
    HURTS,
    MIN_SEEDS,
    NO_DIFFERENCE,
    TOO_FEW,
    Difference,
    verdict,
)
from kd_lightning.report.table import file_size, p_value, points, signed_interval
from kd_lightning.utils.run_directory import RunDirectory

METHOD = (
    "Verdicts are about test accuracy. Each group is compared with its baseline in pairs of "
    "runs with the same seed. p-values are Holm-corrected for the number of comparisons; 95 % "
    "intervals are not corrected. The best group (★) is chosen on validation data, never on "
    "test data."
)
NEAR = 0.005  # of accuracy: a student this far below its teacher is about as accurate
# What each control removes from the teacher's outputs, in the order of the report's sentences.
REMOVES = {
    "permuted": "the teacher's ranking of the wrong classes",
    "untrained": "the teacher's training",
    "label_smoothing": "targets that differ from sample to sample",
}


def headline(report: Report) -> str:
    """State in one sentence whether distillation helped."""
    lead = report.lead
    if not report.rows:
        return "No run has finished yet."
    if lead is None or lead.difference is None:
        return _nothing_compared(report)
    can_tell = any(row.verdict != TOO_FEW for row in report.asked)
    # Groups with different baselines solve different tasks, so no single one is the best.
    return _of_one(lead, report) if report.has_one_baseline or not can_tell else _of_all(report)


def mood(report: Report) -> str:
    """Return ``helps`` or ``hurts`` if the headline is unanimous, else ``open``."""
    lead = report.lead
    told = [lead] if lead and report.has_one_baseline else report.asked
    found = {row.verdict for row in told} & {HELPS, HURTS}
    # Groups that help beside groups that hurt leave the question open.
    return found.pop() if len(found) == 1 else "open"


def _nothing_compared(report: Report) -> str:
    if any(row.is_baseline for row in report.rows):
        return (
            f"Nothing to compare: no other group has the same student, data and budget "
            f"as {report.baseline}."
        )
    return (
        "No verdict: there is no baseline, a group trained on labels alone (method=ce). Add one, "
        "or choose another group to compare with: --baseline KEY=VALUE."
    )


def _of_one(lead: Row, report: Report) -> str:
    change = _change(lead, report)
    if lead.verdict == NO_DIFFERENCE:
        return f"No difference shown: {change}; it may be due to chance."
    if lead.verdict == TOO_FEW:
        needed = f"At least {MIN_SEEDS} are needed; 'seed=range(5)' runs five."
        return f"Too few seeds for a verdict: {change}. {needed}"
    better = lead.verdict == HELPS
    if lead.is_about_distillation:
        found = "Yes, distillation helped" if better else "No, distillation hurt"
    else:
        found = f"{lead.group.label} is {'better' if better else 'worse'} than {report.baseline}"
    return f"{found}: {change}."


def _of_all(report: Report) -> str:
    asked, lead = report.asked, report.lead
    assert lead
    found = Counter(row.verdict for row in asked)
    distilled = all(row.is_about_distillation for row in asked)
    good, bad = ("Distillation helped", "hurt") if distilled else ("Better", "worse")
    few = f", too few seeds in {found[TOO_FEW]}" if found[TOO_FEW] else ""
    counts = f"{found[HELPS] or 'none'} of {len(asked)} comparisons"
    return (
        f"{good} in {counts}, {bad} in {found[HURTS] or 'none'}{few}; "
        f"the clearest: {_change(lead, report)}."
    )


def _change(row: Row, report: Report) -> str:
    """Describe a difference: ``method=kd reaches 97.70 % on test, compared with 96.90 % for …``."""
    assert row.difference
    ours, theirs = (with_unit(mean, "%") for mean in _means(row))
    tests = len([r for r in report.compared if r.p is not None])
    return (
        f"{row.group.label} reaches {ours} on test, compared with {theirs} for "
        f"{report.baseline}, a difference of {_evidence(row.difference, row.p, tests)}"
    )


def _means(row: Row) -> tuple[float, float]:
    """Return the means of a row and its baseline, over shared seeds if they are paired."""
    # Means over all seeds would not add up to the difference in the same sentence.
    assert row.difference
    assert row.baseline
    ours, theirs = row.group.scores(TEST), row.baseline.scores(TEST)
    if row.difference.paired:
        shared = ours.keys() & theirs.keys()
        ours, theirs = ({s: scores[s] for s in shared} for scores in (ours, theirs))
    return fmean(ours.values()), fmean(theirs.values())


def _evidence(delta: Difference, p: float | None, tests: int) -> str:
    """Format a difference: ``+0.55 points (95 % interval …; n = 5 seeds, paired; p = 0.022)``."""
    seeds = "seed" if delta.n == 1 else "seeds"
    parts = [f"n = {delta.n} {seeds}, paired" if delta.paired else f"n = {delta.n} {seeds} a group"]
    if delta.low is not None:
        parts.insert(0, f"95 % interval {signed_interval(delta.low, delta.high)}")
    if p is not None:
        holm = f", Holm-corrected for {tests} comparisons" if tests > 1 else ""
        parts.append(f"p {'= ' if p >= 0.001 else ''}{p_value(p)}{holm}")
    return f"{points(delta.mean)} points ({'; '.join(parts)})"


def controls(report: Report) -> list[str]:
    """Compare the headline's group with each control, in one sentence per control.

    There are no sentences unless the headline is about distillation.
    """
    lead = report.lead
    if lead is None or not lead.is_about_distillation:
        return []
    rows = _controls_of(lead, report)
    found = {name: difference_of(lead.group, row.group) for name, row in rows.items()}
    deltas = {name: delta for name, delta in found.items() if delta}
    # A separate family of tests, because they answer another question than the verdicts.
    p_values = adjusted(deltas)
    return [
        _beside_control(name, delta, p_values.get(name), len(p_values), lead)
        for name, delta in deltas.items()
    ]


def _controls_of(lead: Row, report: Report) -> dict[str, Row]:
    """Return each control's group most similar to the lead; ties are broken on validation data."""
    columns = list(report.columns)

    def likeness(row: Row) -> tuple[int, float]:
        return row.group.agreement(lead.group, columns), row.val.mean if row.val else 0.0

    # Groups with the same baseline have the same student, data and budget.
    rows = [row for row in report.compared if row.baseline is lead.baseline and row.group.control]
    found = {row.group.control: row for row in sorted(rows, key=likeness)}
    order = [*REMOVES, *sorted(found.keys() - REMOVES.keys())]
    return {name: found[name] for name in order if name in found}


def _beside_control(name: str, delta: Difference, p: float | None, tests: int, lead: Row) -> str:
    control = f"the {name.replace('_', '-')} control"
    removed = REMOVES.get(name, "what the control removes")
    said, evidence = verdict(delta, p), _evidence(delta, p, tests)
    if said == HELPS:
        return f"Better than {control}: {evidence}. The gain depends on {removed}."
    if said == HURTS:
        return f"Worse than {control}: {evidence}. A gain does not need {removed}."
    if said == TOO_FEW:
        return f"Too few seeds for a comparison with {control}: {evidence}."
    sentence = f"No difference from {control} shown: {evidence}."
    if lead.verdict == HELPS:
        return f"{sentence} The gain may not depend on {removed}."
    return sentence


def notes(report: Report) -> list[str]:
    """Return the notes that qualify the table: pairing, teachers, repeats, unfinished runs."""
    found = []
    if partly := [row.group.label for row in report.compared if _is_partly_paired(row)]:
        found.append(f"Compared over the seeds shared with the baseline: {'; '.join(partly)}.")
    if unpaired := [
        r.group.label for r in report.compared if r.difference and not r.difference.paired
    ]:
        found.append(
            f"Compared without pairs (Welch's t-test), since fewer than {MIN_SEEDS} seeds are "
            f"shared with the baseline: {'; '.join(unpaired)}."
        )
    if len(report.teachers) > 1:
        taught = (f"{teacher_name(t, report)} of {'; '.join(t.groups)}" for t in report.teachers)
        found.append(f"Teachers: {' / '.join(taught)}.")
    if report.repeats:
        found.append(
            f"Left out because a later run has the same settings and seed: "
            f"{_paths(report.repeats)}."
        )
    # Different code may explain a difference between groups, so the reader has to know.
    commits = sorted({str(code) for run in report.runs if (code := run.facts.get("code"))})
    if len(commits) > 1:
        found.append(f"The runs used different versions of the code: {', '.join(commits)}.")
    if report.unfinished:
        found.append(f"Left out because unfinished or failed: {_paths(report.unfinished)}.")
    return [*found, *shipping(report)]


def shipping(report: Report) -> list[str]:
    """Name the smallest exported student that is about as accurate as its teacher.

    There is a sentence for each teacher, if files were measured with kd-benchmark.
    """
    exported = report.exported
    found = [_smallest(teacher, report) for teacher in report.teachers]
    if len(exported.cpus) and not exported.have_one_machine:
        where = f"CPUs ({'; '.join(exported.cpus)})" if len(exported.cpus) > 1 else "versions"
        found.append(
            f"The exported files were measured with different {where}, so their times are not "
            f"compared: measure all runs with one kd-benchmark."
        )
    return [sentence for sentence in found if sentence]


def _smallest(teacher: Teacher, report: Report) -> str:
    exported, scores = report.exported, teacher.summary(TEST)
    # Students that had no teacher, as in mutual learning, are compared with the only one, too.
    is_only = len(report.teachers) == 1
    students = [p for p in exported.students if p.group]
    files = [p for p in students if is_only or (p.group and p.group.label in teacher.groups)]
    if not scores or not files:
        return ""
    goal = f"within {100 * NEAR:g} points of the {teacher_name(teacher, report)} on test data"
    near = [p for p in files if p.accuracy.mean >= scores.mean - NEAR]
    if not near:
        best = max(files, key=lambda p: p.accuracy.mean)
        return (
            f"No exported student is {goal} ({with_unit(scores.mean, '%')}): the best reaches "
            f"{with_unit(best.accuracy.mean, '%')}."
        )
    point = min(near, key=lambda p: (p.bytes, -p.accuracy.mean))
    assert point.group
    ms = [f"{point.ms:.2g} ms"] if exported.have_one_machine else []
    figures = [file_size(point.bytes), *ms, with_unit(point.accuracy.mean, "%")]
    seeds = f" (mean of {point.accuracy.n} seeds)" if point.accuracy.n > 1 else ""
    return (
        f"The smallest student {goal} ({with_unit(scores.mean, '%')}): {point.group.label} as "
        f"{point.name}, {', '.join(figures)}{seeds}."
    )


def common_overrides(report: Report) -> str:
    """List the overrides that all runs have in common; empty if there are none."""
    runs = report.runs
    typed = runs[0].overrides.items() if runs else ()
    shared = [f"{k}={as_text(v)}" for k, v in typed if all(r.overrides.get(k) == v for r in runs)]
    return f"Overrides of all runs: {' '.join(shared)}" if shared else ""


def teacher_name(teacher: Teacher, report: Report) -> str:
    several = len(report.teachers) > 1
    return f"teacher {report.teachers.index(teacher) + 1}" if several else "teacher"


def _is_partly_paired(row: Row) -> bool:
    delta, baseline = row.difference, row.baseline
    if delta is None or baseline is None or not delta.paired:
        return False
    return delta.n < max(len(row.group.runs), len(baseline.runs))  # some seeds have no partner


def _paths(runs: Sequence[RunDirectory]) -> str:
    return ", ".join(str(run.path) for run in runs)
