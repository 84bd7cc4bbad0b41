"""How students are trained: what each has of its own, and what they have in common."""

from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd_lightning.data.images import ImageDataModule
from kd_lightning.objective import Objective


@dataclass
class Recipe:
    """How one student is trained.

    Attributes:
        objective: its loss.
        optimizer: the one it would have alone; never stepped.
        scheduler: of its learning rate, or None.
        data: the datamodule with its order of samples.
        best: path of its best checkpoint, for a message.
    """

    objective: Objective
    optimizer: Optimizer
    scheduler: LRScheduler | None
    data: ImageDataModule
    best: str


@dataclass
class Limits:
    """What is common to all students of a training.

    Attributes:
        epochs: number of epochs.
        log_every: steps between two log entries.
        gradients_every: steps between two measurements of gradients; 0 for none.
        monitor: figure that selects the best epoch, as in ``val/accuracy``.
        is_better: compares a new value of it with the best one.
        lr_name: name under which the learning rate is logged; empty if it is not.
    """

    epochs: int
    log_every: int
    gradients_every: int
    monitor: str
    is_better: Callable[[float, float], bool]
    lr_name: str
