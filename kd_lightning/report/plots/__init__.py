"""Plots of a report."""

from kd_lightning.report.compare import Report
from kd_lightning.report.plots import accuracy, curves, diagnostics, pareto
from kd_lightning.report.plots.base import Plot, style


def draw(report: Report) -> list[Plot]:
    """Draw every plot for which there are data."""
    with style():
        return [
            *accuracy.temperature_and_alpha(report),
            *accuracy.size(report),
            *pareto.plots(report),
            *curves.learning_curves(report),
            *curves.chains(report),
            *diagnostics.plots(report),
        ]
