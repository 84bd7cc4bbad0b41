"""The plots of a report: every one that there are data for."""

from kd_lightning.report.compare import Report
from kd_lightning.report.plots import accuracy, curves, diagnostics
from kd_lightning.report.plots.base import Plot, style


def draw(report: Report) -> list[Plot]:
    """Every plot that there are data for."""
    with style():
        return [
            *accuracy.temperature_and_alpha(report),
            *accuracy.size(report),
            *curves.learning_curves(report),
            *curves.chains(report),
            *diagnostics.plots(report),
        ]
