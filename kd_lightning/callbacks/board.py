"""TensorBoard, where a run has it."""

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


def has_board(trainer: L.Trainer) -> bool:
    """Whether any logger of the run is TensorBoard's; the same on all ranks."""
    return any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)


def boards(trainer: L.Trainer) -> list[SummaryWriter]:
    """What writes to TensorBoard: on the first process only, and not in a trial run."""
    found = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return [logger.experiment for logger in found] if trainer.is_global_zero else []
