"""What a run says about itself: at its start in three lines, and when its result is poor."""

import logging
from collections.abc import Sequence
from typing import Any

import lightning as L
from omegaconf import DictConfig

from kd_lightning.metrics.cost import count_parameters
from kd_lightning.metrics.evaluation import is_near_chance
from kd_lightning.modules import DistillationModule, TeacherModule
from kd_lightning.modules.base import BaseModule
from kd_lightning.runs.processes import chosen_options, own_overrides
from kd_lightning.runs.record import parse_overrides
from kd_lightning.runs.teacher import TeacherOrder
from kd_lightning.teachers.sources import FromStore, TeacherSource

log = logging.getLogger(__name__)


def announce(
    cfg: DictConfig,
    data: L.LightningDataModule,
    module: BaseModule,
    source: TeacherSource,
    order: TeacherOrder,
) -> None:
    """Log what is trained on what data, from which teacher, and where it is kept."""
    options = chosen_options()
    name, size = options.get("data") or type(data).__name__, getattr(data, "summary", "")
    on = f"the labels of {name}" if module.role == "teacher" else name
    method = "" if module.role == "teacher" else f" with method={options['method']}"
    log.info("Training %s%s on %s", _network(module.network), method, f"{on}: {size}".rstrip(": "))
    if isinstance(module, DistillationModule) and module.teacher is not None:
        role = "Teacher" if module.objective.needs_teacher else "Teacher, for comparison only"
        log.info("%s: %s, %s", role, _network(module.teacher), source.describe(order))
    log.info("Run directory: %s", cfg.run_dir)
    for name in ("limit_val_batches", "limit_test_batches"):
        limit = cfg.trainer.get(name)
        if limit is not None and (isinstance(limit, int) or limit < 1.0):  # 1 batch, or 100 %
            log.warning("trainer.%s=%s: the figures are those of a part of the data", name, limit)
    for key in _idle(own_overrides(cfg) or [], module, source):
        log.warning("%s has no effect on this run", key)


def _idle(overrides: Sequence[str], module: BaseModule, source: TeacherSource) -> list[str]:
    """Return the user's settings that this run does not use."""
    is_teacher = isinstance(module, TeacherModule)
    idle = [] if isinstance(source, FromStore) else ["pretrain"]  # no teacher is trained
    idle += ["method", "student", "cache", "teacher_from"] if is_teacher else []
    if not isinstance(module, DistillationModule):
        idle += ["cache"]
    typed = parse_overrides(overrides)
    return [key for key in typed if key.partition(".")[0] in idle]


def warn_near_chance(who: str, accuracy: Any, classes: int) -> None:
    """Warn about a network that has hardly learnt anything.

    Args:
        who: the network, for the message.
        accuracy: its share of correct predictions; None if it was not measured.
        classes: number of classes.
    """
    if accuracy is not None and is_near_chance(float(accuracy), classes):
        log.warning(
            "the %s is hardly better than chance: %.1f %% correct, where guessing reaches %.3g %%",
            *(who, 100 * float(accuracy), 100 / classes),
        )


def _network(net: Any) -> str:
    return f"{type(net).__name__} ({count_parameters(net):,} parameters)"
