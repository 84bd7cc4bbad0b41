"""Access to the TensorBoard writers of a run."""

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


def has_board(trainer: L.Trainer) -> bool:
    """Return whether the run logs to TensorBoard; the answer is the same on all ranks."""
    return any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)


def boards(trainer: L.Trainer) -> list[SummaryWriter]:
    """Return the writers of all TensorBoard loggers.

    The list is empty on all processes but the first, and under ``fast_dev_run``.
    """
    # Not logger.experiment on every rank: elsewhere it is a dummy that accepts calls silently,
    # and pictures would be drawn for it.
    found = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return [logger.experiment for logger in found] if trainer.is_global_zero else []
