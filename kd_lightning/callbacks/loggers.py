"""What a run writes for people to watch: CSV that survives a resumption, hyper-parameters."""

import csv
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

log = logging.getLogger(__name__)


class OneGraphTensorBoardLogger(TensorBoardLogger):
    """Draws the graph once; Lightning's own draws it again to validate and to test."""

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Tensor | None = None) -> None:
        example = model.example_input_array if input_array is None else input_array
        assert isinstance(example, Tensor)
        # trainer.precision=bf16-true has converted the module
        fitting = example.to(model.dtype) if example.is_floating_point() else example
        try:
            super().log_graph(model, fitting)
        except Exception as error:  # some networks cannot be traced; that must not end a run
            log.warning("TensorBoard gets no graph: %s", str(error).strip().splitlines()[0])
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


def log_outcome(
    loggers: Sequence[Logger],
    choices: Mapping[str, Any],
    metrics: Mapping[str, Any],
    step: int,
    first: Collection[str] = (),
) -> None:
    """Tell every logger what was chosen and, as of a step, what came of it.

    That is every figure of the splits but those of single classes; validation's of the best
    epoch under ``val_best/``, lest it become one more point of the curves over epochs.

    Args:
        loggers: of the run.
        choices: what tells the run from others.
        metrics: its figures.
        step: the last one.
        first: those of the choices that come first in TensorBoard's table.
    """
    names = [n for n in metrics if n.startswith(("val/", "test/")) and "class_" not in n]
    plain = [name.partition("/")[2] for name in names]  # the same of both splits side by side
    names.sort(key=lambda n: ("/teacher_" in n, plain.index(n.partition("/")[2])))
    figures = {name.replace("val/", "val_best/"): metrics[name] for name in names}
    flat = {k: v if isinstance(v, int | float) else str(v) for k, v in choices.items()}
    for logger in loggers:
        logger.log_metrics(figures, step)
        if isinstance(logger, TensorBoardLogger):
            _write_hparams(logger.experiment, flat, figures, first)
        else:
            logger.log_hyperparams(flat)
        logger.save()


def _write_hparams(
    board: SummaryWriter,
    choices: dict[str, Any],
    figures: dict[str, Any],
    first: Collection[str],
) -> None:
    """A row of the tab HParams.

    TensorBoard shows but five columns at first: those that are said to differ, then by name.
    """
    experiment, start, end = hparams(choices, figures)
    plugin = experiment.value[0].metadata.plugin_data
    content = plugin_data_pb2.HParamsPluginData.FromString(  # pyright: ignore[reportAttributeAccessIssue]
        plugin.content
    )
    for info in content.experiment.hparam_infos:
        info.differs = info.name in first
    plugin.content = content.SerializeToString()
    for summary in (experiment, start, end):
        board._get_file_writer().add_summary(summary)
