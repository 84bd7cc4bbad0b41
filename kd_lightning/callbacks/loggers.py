"""Loggers: one TensorBoard graph per run, a CSV file that can be resumed, hyper-parameters."""

import csv
import io
import logging
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
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

from kd_lightning.callbacks.graph import traced_graph
from kd_lightning.metrics.figures import parse
from kd_lightning.utils.files import write_text

log = logging.getLogger(__name__)


class OneGraphTensorBoardLogger(TensorBoardLogger):
    """A TensorBoard logger that writes the graph once.

    Lightning's own writes it again for every validation and test.
    """

    _latest: tuple[Callable[[], Any], Any] = (lambda: None), None  # the module, and its graph

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Tensor | None = None) -> None:
        example = model.example_input_array if input_array is None else input_array
        assert isinstance(example, Tensor)
        # with trainer.precision=bf16-true the module is converted, but its example is not
        fitting = example.to(model.dtype) if example.is_floating_point() else example
        try:
            self._write_graph(model, fitting)
        # Some networks cannot be traced, and tracing raises whatever their code raises. A plot
        # must not end a run.
        except Exception as error:
            log.warning("TensorBoard gets no graph: %s", _first_line(error))
        self._log_graph = False  # also after a failure: one warning is enough

    def _write_graph(self, model: LightningModule, example: Tensor) -> None:
        if self._log_graph:
            batch = model._on_before_batch_transfer(example)
            # Students that were trained together are one module in turn, with other weights.
            known, graph = OneGraphTensorBoardLogger._latest
            if known() is not model:
                graph = traced_graph(model, model._apply_batch_transfer_handler(batch))
                OneGraphTensorBoardLogger._latest = weakref.ref(model), graph
            self.experiment._get_file_writer().add_graph(graph)


class ResumableCSVLogger(CSVLogger):
    """A CSV logger that writes ``metrics.csv`` directly into ``save_dir`` and appends to it.

    Lightning's own deletes the file of an earlier run, and with it the curves of a run that
    is resumed.

    Args:
        save_dir: the run directory.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="")

    # Overridden as a whole, because Lightning offers no way to choose the writer.
    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Appender(self.log_dir)
        return self._experiment


class _Appender(ExperimentWriter):
    # Called when the writer is built; Lightning's deletes an existing file here. Ours reads its
    # header, as the columns decide whether a row can be appended or all must be rewritten.
    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if not file.is_file():
            return
        _remove_torn_row(file)
        with file.open(newline="") as lines:
            self.metrics_keys = next(csv.reader(lines), [])

    # Lightning's empties the file before it writes all rows again: a run that is killed, or
    # stopped by a full disk, would lose the curves of its earlier epochs.
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        file, rewritten = Path(self.metrics_file_path), io.StringIO(newline="")
        writer = csv.DictWriter(rewritten, fieldnames)
        writer.writeheader()
        with file.open(newline="") as lines:
            writer.writerows(csv.DictReader(lines))
        write_text(file, rewritten.getvalue())

    def log_hparams(self, params: dict[str, Any]) -> None:
        pass  # .hydra/config.yaml already contains them


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _remove_torn_row(file: Path) -> None:
    """Remove a last row without an end, at which a process was killed or the disk was full."""
    content = file.read_bytes()
    if content and not content.endswith(b"\n"):
        write_text(file, content[: content.rfind(b"\n") + 1].decode())


def log_outcome(
    loggers: Sequence[Logger],
    choices: Mapping[str, Any],
    metrics: Mapping[str, Any],
    step: int,
    first: Collection[str] = (),
) -> None:
    """Log a run's settings and final figures to every logger.

    The figures are those of validation and test, without those of single classes. Validation
    figures of the best epoch are logged as ``val_best/…``.

    Args:
        loggers: the run's loggers.
        choices: the settings that distinguish the run from others.
        metrics: the run's figures.
        step: the last training step.
        first: names of the settings that come first in TensorBoard's table.
    """
    # Those of single classes would be most of the table's columns: 30 per split on MNIST.
    found = {name: parsed for name in metrics if (parsed := parse(name))}
    names = [n for n, f in found.items() if f.split and f.figure.kind != "per class"]
    # the same figure of both splits side by side, the teacher's after the student's
    plain = [name.partition("/")[2] for name in names]
    names.sort(key=lambda n: (found[n].of_teacher, plain.index(n.partition("/")[2])))
    # under val/ they would add a point to the curves over epochs, at the last step
    figures = {name.replace("val/", "val_best/"): metrics[name] for name in names}
    flat = {k: v if isinstance(v, int | float) else str(v) for k, v in choices.items()}
    for logger in loggers:
        logger.log_metrics(figures, step)
        if isinstance(logger, TensorBoardLogger):
            _write_hparams(logger.experiment, flat, figures, first)
            logger.save()
            # Lightning closed it after the training, and writing has opened it again: a thread
            # and a file for each job of a sweep.
            logger.experiment.close()
        else:
            logger.log_hyperparams(flat)
            logger.save()


def _write_hparams(
    board: SummaryWriter,
    choices: dict[str, Any],
    figures: dict[str, Any],
    first: Collection[str],
) -> None:
    """Write the run's row of TensorBoard's HParams tab.

    Args:
        board: the writer.
        choices: settings by name.
        figures: final figures by name.
        first: names of the settings that are marked as differing between runs.
    """
    # Not SummaryWriter.add_hparams, which writes to a subdirectory that TensorBoard shows as a
    # run of its own. The mark matters because the tab shows only five columns at first: the
    # marked ones, then the others by name.
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
