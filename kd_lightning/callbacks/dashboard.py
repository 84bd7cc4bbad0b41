"""TensorBoard: the writers of a run, and the charts of its Custom Scalars tab."""

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from kd_lightning.modules import DistillationModule

# Tags, as regular expressions, by category and chart. They are fixed instead of built from what
# a run logs: TensorBoard merges the layouts of all runs by title, so charts that differ between
# the jobs of a sweep would not show its runs in one plot.
Charts = dict[str, dict[str, list[str]]]

OF_ALL: Charts = {
    "losses": {
        # A transfer term may have any name, so the expression excludes tags that are no losses.
        "training: the loss and its terms": [r"train/(?!alpha$|temperature$|weight_)"],
        "validation": [r"val/loss$"],
    },
    "accuracies": {"validation": [r"val/(teacher_)?accuracy$"]},
}
# Left out for teachers, since TensorBoard shows a chart without data as an empty frame.
OF_STUDENTS: Charts = {
    "fidelity": {"agreement with the teacher, validation": [r"val/agreement$"]},
    "temperature and weights": {
        "temperature": [r"train/temperature$"],
        "alpha and the weights of terms": [r"train/(alpha$|weight_)"],
    },
    "gradients": {
        "norm of each weighted term": [r"gradient/(?!cosine_)"],
        "cosine between the hard term and each": [r"gradient/cosine_"],
    },
}


class ScalarLayout(L.Callback):
    """Group the curves of a run: losses, accuracies, fidelity, temperature, gradients."""

    shapes_result = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # At the start, so the charts exist while the training is still running.
        charts = OF_ALL | (OF_STUDENTS if isinstance(pl_module, DistillationModule) else {})
        layout = {
            category: {title: ["Multiline", tags] for title, tags in titles.items()}
            for category, titles in charts.items()
        }
        for board in boards(trainer):
            board.add_custom_scalars(layout)


def has_board(trainer: L.Trainer) -> bool:
    """Return whether the run logs to TensorBoard, with the same result on all ranks."""
    return any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)


def boards(trainer: L.Trainer) -> list[SummaryWriter]:
    """Return the writers of all TensorBoard loggers.

    The list is empty on all processes but the first, and under ``fast_dev_run``.
    """
    # Not logger.experiment on every rank: elsewhere it is a dummy that accepts calls silently,
    # and pictures would be drawn for it.
    found = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return [logger.experiment for logger in found] if trainer.is_global_zero else []
