"""Tests of TensorBoard's charts: which curve is in which, and what is written."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from kd_lightning.callbacks.dashboard import OF_ALL, OF_STUDENTS, ScalarLayout
from kd_lightning.modules import DistillationModule, TeacherModule

TAG = "custom_scalars__config__"  # where TensorBoard looks for the layout
CHARTS = {
    f"{category}: {title}": tags
    for category, titles in (OF_ALL | OF_STUDENTS).items()
    for title, tags in titles.items()
}


def charts_of(tag: str) -> list[str]:
    """Return the charts that contain a tag, matched as TensorBoard does."""
    return [name for name, tags in CHARTS.items() if any(re.match(t, tag) for t in tags)]


@pytest.mark.parametrize(
    ("tag", "chart"),
    [
        ("train/loss", "losses: training"),
        ("train/response", "losses: training"),
        ("train/alphabet", "losses: training"),  # a term may have any name
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
def test_curve_is_in_exactly_one_chart(tag: str, chart: str) -> None:
    (found,) = charts_of(tag)
    assert found.startswith(chart)


@pytest.mark.parametrize("tag", ["epoch", "lr-Adam", "val_best/accuracy", "test/loss"])
def test_other_tags_are_in_no_chart(tag: str) -> None:
    assert charts_of(tag) == []


def written(kind: type[L.LightningModule], folder: Path, rank_zero: bool = True) -> list[str]:
    """Return the categories of the layout that a module's run writes, in order."""
    logger = TensorBoardLogger(folder, name="", version="")
    trainer: Any = SimpleNamespace(loggers=[CSVLogger(folder), logger], is_global_zero=rank_zero)
    ScalarLayout().on_fit_start(trainer, kind.__new__(kind))
    logger.experiment.flush()
    events = EventAccumulator(str(folder)).Reload()
    if TAG not in events.Tags()["tensors"]:
        return []
    (event,) = events.Tensors(TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    for category in layout.category:
        expected = (OF_ALL | OF_STUDENTS)[category.title]
        assert {c.title: list(c.multiline.tag) for c in category.chart} == expected
    return [category.title for category in layout.category]


@pytest.mark.parametrize(
    ("kind", "charts"), [(TeacherModule, OF_ALL), (DistillationModule, OF_ALL | OF_STUDENTS)]
)
def test_layout_in_the_event_file_depends_on_the_module(
    kind: type[L.LightningModule], charts: dict[str, Any], tmp_path: Path
) -> None:
    assert written(kind, tmp_path) == list(charts)


def test_other_processes_write_no_layout(tmp_path: Path) -> None:
    assert written(DistillationModule, tmp_path, rank_zero=False) == []
