"""Tests of the loggers: graphs that cannot be traced, and CSV files that are resumed."""

import csv
import logging
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.callbacks.loggers import OneGraphTensorBoardLogger, ResumableCSVLogger
from kd_lightning.data.types import ImageSpec
from kd_lightning.modules import TeacherModule
from kd_lightning.tasks.classification import Classification

SPEC = ImageSpec((1, 4, 4), 3, (0.5,), (0.5,))


class Untraceable(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise ValueError("no graph of me")
        return self.last(x.flatten(1))


@pytest.mark.filterwarnings("ignore")  # tracing evaluates deprecated attributes
def test_graph_that_cannot_be_traced_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = OneGraphTensorBoardLogger(str(tmp_path), log_graph=True)
    with caplog.at_level(logging.WARNING):
        logger.log_graph(TeacherModule(Untraceable, task=Classification(SPEC)))
    assert caplog.messages == ["TensorBoard gets no graph: no graph of me"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_of_an_earlier_run_is_continued(tmp_path: Path) -> None:
    first, resumed = ResumableCSVLogger(str(tmp_path)), ResumableCSVLogger(str(tmp_path))
    first.log_metrics({"loss": 2.0}, step=0)
    first.save()
    resumed.log_metrics({"loss": 1.0}, step=1)
    resumed.save()
    resumed.log_metrics({"loss": 0.5, "accuracy": 0.9}, step=2)  # a new column rewrites the file
    resumed.save()
    assert [(row["step"], row["loss"], row["accuracy"]) for row in rows(tmp_path)] == [
        ("0", "2.0", ""),
        ("1", "1.0", ""),
        ("2", "0.5", "0.9"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_torn_row_is_removed_before_the_next(tmp_path: Path) -> None:
    first, resumed = ResumableCSVLogger(str(tmp_path)), ResumableCSVLogger(str(tmp_path))
    first.log_metrics({"loss": 2.0}, step=0)
    first.save()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1.2")  # killed, or no room for the rest
    resumed.log_metrics({"loss": 1.0}, step=1)
    resumed.save()
    assert [row["loss"] for row in rows(tmp_path)] == ["2.0", "1.0"]


def test_curves_survive_a_kill_while_a_column_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = ResumableCSVLogger(str(tmp_path))
    logger.log_metrics({"loss": 2.0}, step=0)
    logger.save()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    logger.log_metrics({"accuracy": 0.5}, step=1)
    with pytest.raises(KeyboardInterrupt):
        logger.save()
    assert [row["loss"] for row in rows(tmp_path)] == ["2.0"]
