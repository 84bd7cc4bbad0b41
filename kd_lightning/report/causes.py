"""What a gain is due to: the row of the headline beside half measures of the same control."""

from kd_lightning.report.answer import sureness
from kd_lightning.report.compare import (
    Report,
    Row,
    adjusted,
    difference_of,
    is_about_distillation,
)
from kd_lightning.report.settings import placebo
from kd_lightning.report.stats import HELPS, HURTS, TOO_FEW, Difference, verdict

LACKS = {  # what each half measure leaves out
    "permuted": "which wrong classes the teacher likens",
    "untrained": "what the teacher has learnt",
    "label_smoothing": "what the teacher says of each sample",
}


def causes(report: Report) -> list[str]:
    """A sentence for each half measure; none where the headline is not about distillation."""
    lead = report.lead
    if lead is None or not is_about_distillation(lead):
        return []
    found = {n: difference_of(lead.group, row.group) for n, row in _placebos(lead, report).items()}
    deltas = {name: delta for name, delta in found.items() if delta}
    p_values = adjusted(deltas)
    return [_cause(n, d, p_values.get(n), len(p_values), lead) for n, d in deltas.items()]


def _placebos(lead: Row, report: Report) -> dict[str, Row]:
    """Of each kind the one most like the lead; of equals the best on validation."""
    columns = list(report.columns)
    likeness = lambda r: (r.group.agrees(lead.group, columns), r.val.mean if r.val else 0.0)  # noqa: E731
    rows = [row for row in report.compared if row.control is lead.control]
    last = {placebo(row.group.first): row for row in sorted(rows, key=likeness)}
    return {name: last[name] for name in LACKS if name in last}


def _cause(name: str, delta: Difference, p: float | None, compared: int, lead: Row) -> str:
    said, figures = verdict(delta, p), sureness(delta, p, compared)
    if said == HELPS:
        return f"Beyond {name}: {figures}, so {LACKS[name]} counts."
    if said == HURTS:
        return f"Less than {name}: {figures}, so {LACKS[name]} is not needed for a gain."
    if said == TOO_FEW:
        return f"Too few seeds to tell it from {name}: {figures}."
    if lead.verdict == HELPS:
        return (
            f"No more than {name} gains, as far as shown: {figures}; {LACKS[name]} may not count."
        )
    return f"No difference from {name} shown: {figures}."
