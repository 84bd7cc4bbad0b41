"""Resumed runs: whether anything is left to train, and from which checkpoint it goes on."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kd_lightning.modules.base import BaseModule
from kd_lightning.runs.checkpoints import describe_mismatch, read_checkpoint
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.reading import read_json
from kd_lightning.utils.run_directory import FACTS, METRICS, find_checkpoint, finite

log = logging.getLogger(__name__)

FINISHED = "%s is already finished: only a larger trainer.max_epochs= changes it"
# What a checkpoint needs for a training to go on.
STATES = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step")


def is_already_finished(cfg: DictConfig) -> bool:
    """Whether a resumed run has its figures and no epochs are left to train."""
    file, facts_file = Path(cfg.run_dir) / METRICS, Path(cfg.run_dir) / FACTS
    if not cfg.resume or not file.is_file():
        return False
    most, limits = cfg.trainer.max_epochs, ("max_epochs", "max_steps", "max_time")
    before = read_json(facts_file).get("settings", {}) if facts_file.is_file() else {}
    # With equal limits it ended as it was told to, perhaps early.
    if before and all(before.get(f"trainer.{k}") == cfg.trainer.get(k) for k in limits):
        return True
    return most is not None and 0 <= most <= (finite(read_json(file).get("epochs")) or 0)


def checkpoint_to_resume(cfg: DictConfig, module: BaseModule, optimizers: list[str]) -> Path | None:
    """Return the checkpoint to resume from, or None if no epoch had ended.

    Args:
        cfg: configuration of the resumed run.
        module: its module.
        optimizers: classes of its optimizers; empty if they are not known yet.

    Raises:
        UserError: if the checkpoint is of another network, optimizer or data, or no checkpoint
            of a training.
    """
    if not cfg.resume:
        return None
    path = find_checkpoint(cfg.resume, "last")
    if Path(cfg.resume).is_dir() and not path.is_file():
        log.info("no epoch had ended in %s: starting at the beginning", cfg.resume)
        return None
    # Checked here, before a teacher is trained and with a message of one line; Lightning would
    # list every differing key, or fail in the first step.
    checkpoint = read_checkpoint(path)
    _check_states(path, checkpoint)
    if difference := describe_mismatch(module.state_dict(), checkpoint["state_dict"]):
        raise UserError(f"resume={path} belongs to another network: {difference}")
    before = checkpoint.get("optimizers", optimizers)
    if optimizers and before != optimizers:
        raise UserError(
            f"resume={path} was trained with {', '.join(before)}, not with "
            f"{', '.join(optimizers)}: resume with the same optimizer="
        )
    spec = module.task.spec
    if spec is not None and checkpoint.get("spec", spec.plain()) != spec.plain():
        raise UserError(f"resume={path} was trained on other data: resume with the same data=")
    return path


def _check_states(path: Path, checkpoint: Mapping[str, Any]) -> None:
    if lost := [k for k in STATES if k not in checkpoint]:
        raise UserError(f"resume={path} is no checkpoint of a training: it has no {lost[0]}")
    if not isinstance(checkpoint["epoch"], int):
        raise UserError(f"resume={path} is damaged: its epoch is {checkpoint['epoch']!r}")
