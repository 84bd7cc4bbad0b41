"""Tests of the charts: what is logged finds its place, and only where there is a TensorBoard."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from kd_lightning.callbacks.layout import OF_ALL, OF_STUDENTS, ScalarLayout
from kd_lightning.modules import DistillationModule, TeacherModule

CHARTS = {
    f"{category}: {title}": tags
    for category, titles in (OF_ALL | OF_STUDENTS).items()
    for title, tags in titles.items()
}


def charts_of(tag: str) -> list[str]:
    """The charts that a tag is drawn in, as TensorBoard matches them."""
    return [name for name, tags in CHARTS.items() if any(re.match(t, tag) for t in tags)]


@pytest.mark.parametrize(
    ("tag", "chart"),
    [
        ("train/loss", "losses: training"),
        ("train/response", "losses: training"),
        ("train/alphabet", "losses: training"),  # a term of any name
        ("val/loss", "losses: validation"),
        ("val/accuracy", "accuracies"),
        ("val/teacher_accuracy", "accuracies"),
        ("val/agreement", "fidelity"),
        ("train/temperature", "temperature and weights: temperature"),
        ("train/alpha", "temperature and weights: alpha"),
        ("train/weight_fitnet", "temperature and weights: alpha"),
        ("gradient/hard", "gradients: norm"),
        ("gradient/cosine_fitnet", "gradients: cosine"),
    ],
)
def test_each_curve_is_in_one_chart(tag: str, chart: str) -> None:
    (found,) = charts_of(tag)
    assert found.startswith(chart)


@pytest.mark.parametrize("tag", ["epoch", "lr-Adam", "val_best/accuracy", "test/loss"])
def test_the_others_are_in_none(tag: str) -> None:
    assert charts_of(tag) == []


def test_without_tensorboard_it_is_silent() -> None:
    trainer: Any = SimpleNamespace(loggers=[], is_global_zero=True)
    for kind in (DistillationModule, TeacherModule):
        ScalarLayout().on_fit_start(trainer, kind.__new__(kind))
