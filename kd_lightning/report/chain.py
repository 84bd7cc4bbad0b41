"""The table of a chain of distillations, a row a link."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from kd_lightning.report.run import console, percent


def print_chain(run_dir: Path, names: Sequence[str]) -> None:
    """Print what came of each link, and of all of them together."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("link", "parameters", "val accuracy", "test accuracy", "agreement", "seconds"):
        table.add_column(column, justify="left" if column == "link" else "right")
    links = [_metrics(run_dir / "links" / str(i)) for i in range(len(names))]
    if "teacher" in links[0]:
        first = links[0]
        shares = (percent(first[f"{split}/teacher_accuracy"]) for split in ("val", "test"))
        table.add_row("teacher", f"{first['teacher_parameters']:,}", *shares, style="dim")
    for name, link in zip(names, links, strict=True):
        table.add_row(
            name,
            f"{link['parameters']:,}",
            percent(link["val/accuracy"]),
            percent(link["test/accuracy"]),
            percent(link["test/agreement"]) if "test/agreement" in link else "",
            f"{link['seconds']:.1f}",
        )
    whole = _metrics(run_dir)
    shares = (percent(whole[f"{split}/ensemble_accuracy"]) for split in ("val", "test"))
    table.add_row("all links together", f"{sum(m['parameters'] for m in links):,}", *shares)
    console().print(table)
    console().print(f"chain: {run_dir}", soft_wrap=True, highlight=False)


def _metrics(run_dir: Path) -> dict[str, float]:
    return json.loads((run_dir / "metrics.json").read_text())
