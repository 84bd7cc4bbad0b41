"""What a run writes for people to watch: CSV that survives a resumption, hyper-parameters."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor


class OneGraphTensorBoardLogger(TensorBoardLogger):
    """Draws the graph once; Lightning's own draws it again to validate and to test."""

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Tensor | None = None) -> None:
        super().log_graph(model, input_array)
        self._log_graph = False


class ResumableCSVLogger(CSVLogger):
    """Writes ``metrics.csv`` right in ``save_dir``; Lightning's own deletes what is there."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Appender(self.log_dir)
        return self._experiment


class _Appender(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if file.is_file():
            with file.open(newline="") as lines:
                self.metrics_keys = next(csv.reader(lines), [])

    def log_hparams(self, params: dict[str, Any]) -> None:
        pass  # the choices are in .hydra, not in a second file


def log_hyperparameters(
    loggers: Sequence[Logger], choices: Mapping[str, Any], metrics: Mapping[str, Any]
) -> None:
    """Tell every logger what was chosen; TensorBoard also what came of it."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            figures = {k: v for k, v in metrics.items() if k.startswith(("val/", "test/"))}
            logger.log_hyperparams(dict(choices), figures)
        else:
            logger.log_hyperparams(dict(choices))
        logger.save()
