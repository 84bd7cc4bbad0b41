"""What must not end a run: a network that TensorBoard cannot draw."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.callbacks.loggers import OneGraphTensorBoardLogger
from kd_lightning.data.types import DataSpec
from kd_lightning.modules import TeacherModule

SPEC = DataSpec((1, 4, 4), 3, (0.5,), (0.5,))


class Untraceable(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise ValueError("no graph of me")
        return self.last(x.flatten(1))


@pytest.mark.filterwarnings("ignore")  # tracing looks at all that is deprecated, too
def test_a_network_that_cannot_be_drawn_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = OneGraphTensorBoardLogger(str(tmp_path), log_graph=True)
    with caplog.at_level(logging.WARNING):
        logger.log_graph(TeacherModule(Untraceable, SPEC))
    assert "TensorBoard gets no graph: no graph of me" in caplog.text
