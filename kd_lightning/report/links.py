"""The picture of chains: accuracy link by link, and of all links together."""

from typing import Any

from kd_lightning.report.chain import link_scores, mean_and_spread, names_of
from kd_lightning.report.compare import Report, Row
from kd_lightning.report.pictures import COLORS, GREY, Picture, legend, panels, percent_axis

MOST = 3  # chains side by side


def links(report: Report) -> list[Picture]:
    """A panel for each chain; nothing where there is none."""
    chains = [row for row in report.rows if _is_complete(row)][:MOST]
    if not chains:
        return []
    figure, axes = panels(len(chains))
    for ax, row in zip(axes, chains, strict=True):
        _panel(ax, row)
        ax.set(title=row.group.label, ylabel="validation accuracy" if ax is axes[0] else "")
    caption = (
        "Each link is taught by the one before it. Means over seeds; bars and band are one "
        "standard deviation. Together: the mean of all links' probabilities."
    )
    return [Picture("links", "Accuracy link by link", caption, figure)]


def _is_complete(row: Row) -> bool:
    """Whether it is a chain that has a figure of each link."""
    return bool(names_of(row.group.first)) and all(link_scores(row.group.runs).values())


def _panel(ax: Any, row: Row) -> None:
    scores, names = link_scores(row.group.runs), names_of(row.group.first)
    mean, spread = mean_and_spread(scores.pop("together"))
    ax.axhspan(mean - spread, mean + spread, color=GREY, alpha=0.16, lw=0)
    ax.axhline(mean, color=GREY, ls="--", label="all links together")
    means, spreads = zip(*map(mean_and_spread, scores.values()), strict=True)
    ax.errorbar(range(len(names)), means, spreads, marker="o", color=COLORS[0], label="link")
    ax.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    ax.margins(x=0.1)
    percent_axis(ax.yaxis)
    legend(ax)
