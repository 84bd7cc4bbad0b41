"""The sentence on top of a report: whether distillation helped."""

from collections import Counter
from statistics import fmean

from kd_lightning.cli.console import percent
from kd_lightning.report.compare import TEST, Report, Row, is_about_distillation
from kd_lightning.report.stats import (
    HELPS,
    HURTS,
    MIN_SEEDS,
    NO_DIFFERENCE,
    TOO_FEW,
    Difference,
)
from kd_lightning.report.words import interval, p_value, points


def headline(report: Report) -> str:
    """Whether distillation helped, in one sentence."""
    lead = report.lead
    if not report.rows:
        return "No run has finished yet."
    if lead is None or lead.difference is None:
        return _nothing_compared(report)
    can_tell = any(row.verdict != TOO_FEW for row in report.asked)
    return _of_one(lead, report) if report.has_one_control or not can_tell else _of_all(report)


def mood(report: Report) -> str:
    """``helps`` or ``hurts`` where the sentence says so plainly, else ``open``."""
    lead = report.lead
    told = [lead] if lead and report.has_one_control else report.asked
    found = {row.verdict for row in told} & {HELPS, HURTS}
    return found.pop() if len(found) == 1 else "open"


def sureness(delta: Difference, p: float | None, compared: int) -> str:
    """``+0.55 points (95 % interval …; n = 5 seeds, paired; p = 0.022)``."""
    seeds = "seed" if delta.n == 1 else "seeds"
    about = [f"n = {delta.n} {f'{seeds}, paired' if delta.paired else 'a group, unpaired'}"]
    if delta.low is not None:
        about.insert(0, f"95 % interval {interval(delta.low, delta.high, signed=True)}")
    if p is not None:
        adjusted = f", Holm-corrected for {compared} comparisons" if compared > 1 else ""
        about.append(f"p {'= ' if p >= 0.001 else ''}{p_value(p)}{adjusted}")
    return f"{points(delta.mean)} points ({'; '.join(about)})"


def _nothing_compared(report: Report) -> str:
    if any(row.is_control for row in report.rows):
        return f"Nothing to compare: no group has {report.control} as its control."
    return (
        "No verdict: no group learnt from labels alone (method=ce); "
        "add one, or name another control with --control."
    )


def _of_one(lead: Row, report: Report) -> str:
    change = _change(lead, report)
    if lead.verdict == NO_DIFFERENCE:
        return f"No difference shown: {change}; chance alone may do that."
    if lead.verdict == TOO_FEW:
        needed = f"At least {MIN_SEEDS} are needed; 'seed=range(5)' runs five."
        return f"Too few seeds to tell: {change}. {needed}"
    better = lead.verdict == HELPS
    if is_about_distillation(lead):
        answer = "Yes, distillation helped" if better else "No, distillation hurt"
    else:
        answer = f"{lead.group.label} is {'better' if better else 'worse'} than {report.control}"
    return f"{answer}: {change}."


def _of_all(report: Report) -> str:
    """Over several controls: their rows are no rivals, so none is the best."""
    asked, lead = report.asked, report.lead
    assert lead
    found = Counter(row.verdict for row in asked)
    plainly = all(map(is_about_distillation, asked))
    good, bad = ("Distillation helped", "hurt") if plainly else ("Better", "worse")
    few = f", too few seeds in {found[TOO_FEW]}" if found[TOO_FEW] else ""
    counts = f"{found[HELPS] or 'none'} of {len(asked)} comparisons"
    return (
        f"{good} in {counts}, {bad} in {found[HURTS] or 'none'}{few}; "
        f"the clearest: {_change(lead, report)}."
    )


def _change(row: Row, report: Report) -> str:
    """``method=kd reaches 97.7 % on test against 96.9 % with labels alone, +0.8 points (…)``."""
    assert row.difference
    ours, theirs = map(percent, _means(row))
    compared = len([r for r in report.compared if r.p is not None])
    return (
        f"{row.group.label} reaches {ours} on test against {theirs} with {report.control}, "
        f"{sureness(row.difference, row.p, compared)}"
    )


def _means(row: Row) -> tuple[float, float]:
    """A row's and its control's: where they are paired, over the seeds of both."""
    assert row.difference
    assert row.control
    ours, theirs = row.group.scores(TEST), row.control.scores(TEST)
    if row.difference.paired:
        shared = ours.keys() & theirs.keys()
        ours, theirs = ({s: scores[s] for s in shared} for scores in (ours, theirs))
    return fmean(ours.values()), fmean(theirs.values())
