"""Chains of distillations: the table of one, a row a link, and figures over seeds."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.table import Table

from kd_lightning.cli.console import console, percent
from kd_lightning.report.read import Run, read_run
from kd_lightning.utils.errors import UserError


def link_names(chain: Mapping[str, Any]) -> list[str]:
    """What the links of a configured chain are called, from first to last."""
    if "generations" in chain:
        return [f"generation {i}" for i in range(chain["generations"])]
    return [*map(str, chain["assistants"]), "student"]


def names_of(run: Run) -> list[str]:
    """The links of a run that is a chain; none of any other."""
    chain = run.config.get("chain")
    try:
        return link_names(chain) if isinstance(chain, dict) else []
    except (KeyError, TypeError) as error:
        file = run.path / ".hydra" / "config.yaml"
        raise UserError(f"{file}: chain has neither generations nor assistants") from error


def link_scores(runs: Mapping[str, Run], split: str = "val") -> dict[str, list[float]]:
    """Accuracies of each link, and of all of them together, of chains of several seeds."""
    keys = [str(i) for i, _ in enumerate(names_of(next(iter(runs.values()))))]
    figures = {key: f"{split}/accuracy_{key}" for key in keys}
    figures["together"] = f"{split}/ensemble_accuracy"
    found = {k: [run.number(name) for run in runs.values()] for k, name in figures.items()}
    return {k: [score for score in scores if score is not None] for k, scores in found.items()}


def print_chain(run_dir: Path) -> None:
    """Print what came of each link, and of all of them together."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("link", "parameters", "val accuracy", "test accuracy", "agreement", "seconds"):
        table.add_column(column, justify="left" if column == "link" else "right")
    whole = read_run(run_dir)
    names = names_of(whole)
    links = [read_run(run_dir / "links" / str(i)).metrics for i in range(len(names))]
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
    shares = (percent(whole.metrics[f"{split}/ensemble_accuracy"]) for split in ("val", "test"))
    table.add_row("all links together", f"{sum(m['parameters'] for m in links):,}", *shares)
    console().print(table)
    console().print(f"chain: {run_dir}", soft_wrap=True, highlight=False)


def mean_and_spread(scores: list[float]) -> tuple[float, float]:
    """Mean and standard deviation; 0 for that of a single score."""
    return fmean(scores), stdev(scores) if len(scores) > 1 else 0.0
