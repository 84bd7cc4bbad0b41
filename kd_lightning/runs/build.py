"""From a configuration to objects. Classes get plain values, never a DictConfig."""

import inspect
import itertools
import logging
import os
import sys
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from kd_lightning.data.types import ImageSpec, Spec, as_batch
from kd_lightning.modules.base import BaseModule
from kd_lightning.runs.checkpoints import AtomicCheckpointIO
from kd_lightning.tasks import Task
from kd_lightning.teachers.cache import TeacherCache
from kd_lightning.teachers.sources import FromCheckpoint, NoTeacher, TeacherSource
from kd_lightning.utils.errors import UserError

log = logging.getLogger(__name__)

CACHES: dict[str, TeacherCache] = {}


def make(config: Any) -> Any:
    """What a section of the configuration describes."""
    return instantiate(config, _convert_="all")


def build_data(cfg: DictConfig) -> L.LightningDataModule:
    """The datamodule, with its data read."""
    data = make(cfg.data)
    if not isinstance(data, L.LightningDataModule):
        raise UserError(f"data= makes a {type(data).__name__}, not a LightningDataModule")
    data.prepare_data()
    data.setup("fit")
    return data


def build_task(cfg: DictConfig, data: L.LightningDataModule) -> Task:
    """What is predicted of the data."""
    return make(cfg.task)(spec_of(data))


def spec_of(data: Any) -> Spec:
    """What a datamodule says of its data in ``spec``; otherwise what its batches show.

    Raises:
        UserError: if it does not say, and its batches do not show the shape of one input.
    """
    if (spec := getattr(data, "spec", None)) is not None:
        return spec
    name = type(data).__name__
    log.info("%s has no `spec`: reading the shape and the number of classes off its batches", name)
    with isolate_rng():
        batches = map(as_batch, data.train_dataloader())
        first = next(batches)
        if not isinstance(first.inputs, Tensor):
            raise UserError(f"{name} needs a `spec`: see kd_lightning.data.types.Offers")
        classes = getattr(data, "num_classes", None)
        if classes is None:  # the whole epoch, as any label may come last
            classes = 1 + max(int(b.target.max()) for b in itertools.chain([first], batches))
    # Without mean and standard deviation: how the inputs were normalised is not known.
    return ImageSpec(tuple(first.inputs.shape[1:]), classes, (), ())


def build_source(cfg: DictConfig) -> TeacherSource:
    """Where the teacher comes from.

    Raises:
        UserError: if nothing learns from a teacher, but one is given, or two sources are.
    """
    takes_teacher = getattr(make(cfg.model).func, "takes_teacher", False)
    if cfg.teacher_ckpt is None:
        return make(cfg.teacher_from) if takes_teacher else NoTeacher()
    if not takes_teacher:
        raise UserError("teacher_ckpt is given, but nothing here learns from a teacher: see model=")
    given = cfg.teacher_ckpt
    return FromCheckpoint(list(map(str, given)) if OmegaConf.is_list(given) else str(given))


def build_module(
    cfg: DictConfig, task: Task, data: L.LightningDataModule, teacher: nn.Module | None
) -> BaseModule:
    """The module that trains, with what it takes of teacher, labels and cache."""
    if teacher is not None and not hasattr(data, "prepared"):
        log.info(
            "%s has no `prepared`: the teacher runs in every step instead of once per sample (see "
            "kd_lightning.data.types.Offers)",
            type(data).__name__,
        )
    module = make(cfg.model)
    available = {
        "teacher": teacher,
        "labels": getattr(data, "labels", None),
        "cache": shared_cache(cfg),
    }
    takes = inspect.signature(module.func).parameters
    return module(task=task, **{name: v for name, v in available.items() if name in takes})


def shared_cache(cfg: DictConfig) -> TeacherCache:
    """The cache of these settings; the jobs of a sweep that run in one process share it."""
    settings = OmegaConf.to_yaml(cfg.cache, resolve=True)
    if settings not in CACHES:
        CACHES[settings] = make(cfg.cache)
    return CACHES[settings]


def build_trainer(cfg: DictConfig, profiler: Profiler) -> L.Trainer:
    """The trainer with its callbacks and loggers."""
    callbacks = list(make(cfg.callbacks).values())
    is_watched = cfg.trainer.enable_progress_bar and sys.stdout.isatty()
    trainer = make(cfg.trainer)(
        callbacks=[c for c in callbacks if is_watched or not isinstance(c, ProgressBar)],
        logger=list(make(cfg.logger).values()),
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=is_watched,
        profiler=profiler,
    )
    cores = os.cpu_count() or 1
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores:
        raise UserError(
            f"trainer.devices={trainer.num_devices} asks for more processes than "
            f"the {cores} cores of this machine"
        )
    return trainer
