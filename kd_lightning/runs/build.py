"""Construction of objects from a configuration; no class receives a DictConfig."""

import inspect
import itertools
import logging
import os
import sys
from typing import Any, TypeVar

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from kd_lightning.data.types import ImageSpec, Spec, as_batch
from kd_lightning.modules.base import BaseModule
from kd_lightning.runs.checkpoints import AtomicCheckpointIO
from kd_lightning.runs.ranks import ranks
from kd_lightning.tasks import Task
from kd_lightning.teachers.cache import TeacherCache
from kd_lightning.teachers.sources import FromCheckpoint, FromStore, NoTeacher, TeacherSource
from kd_lightning.utils.errors import UserError, explaining

log = logging.getLogger(__name__)

T = TypeVar("T")

CACHES: dict[str, TeacherCache] = {}  # by their settings, see shared_cache()


def make(config: Any, where: str = "the configuration") -> Any:
    """Instantiate a section of the configuration.

    Args:
        config: the section.
        where: its key, for the error.

    Raises:
        UserError: if the section's class refuses its arguments.
    """
    # "all" converts to plain lists and dictionaries: a DictConfig that ends up in a checkpoint
    # makes weights_only loading refuse it.
    with explaining(where):
        return instantiate(config, _convert_="all")


def build_data(cfg: DictConfig) -> L.LightningDataModule:
    """Create the datamodule and read its data.

    Raises:
        UserError: if ``data=`` is not a LightningDataModule.
    """
    data = make(cfg.data, "data")
    if not isinstance(data, L.LightningDataModule):
        raise UserError(f"data= creates a {type(data).__name__}, not a LightningDataModule")
    # Before any Trainer exists: networks and the teacher's key depend on the data.
    data.prepare_data()
    data.setup("fit")
    return data


def build_task(cfg: DictConfig, data: L.LightningDataModule) -> Task:
    """Create the task for the data."""
    return make(cfg.task, "task")(spec_of(data))


def spec_of(data: Any) -> Spec:
    """Return a datamodule's ``spec``, or a specification inferred from its batches.

    Raises:
        UserError: if there is no ``spec`` and the inputs are not a single tensor.
    """
    if (spec := getattr(data, "spec", None)) is not None:
        return spec
    name = type(data).__name__
    log.info("%s has no `spec`: inferring the shape and number of classes from its batches", name)
    with isolate_rng():
        batches = map(as_batch, data.train_dataloader())
        first = next(batches)
        if not isinstance(first.inputs, Tensor):
            raise UserError(f"{name} needs a `spec`: see kd_lightning.data.types.Offers")
        classes = getattr(data, "num_classes", None)
        if classes is None:  # a full epoch, since the largest label may be in any batch
            classes = 1 + max(int(b.target.max()) for b in itertools.chain([first], batches))
    # Mean and standard deviation are empty: the batches do not show how they were normalised.
    return ImageSpec(tuple(first.inputs.shape[1:]), classes, (), ())


def build_source(cfg: DictConfig) -> TeacherSource:
    """Create the source of the teacher.

    Raises:
        UserError: if ``teacher_ckpt`` is given, but the module takes no teacher.
    """
    takes_teacher = getattr(make(cfg.model, "model").func, "takes_teacher", False)
    named = make(cfg.teacher_from, "teacher_from")
    if takes_teacher and cfg.teacher_ckpt is not None and not isinstance(named, FromStore):
        raise UserError(
            f"teacher_ckpt={cfg.teacher_ckpt} and the teacher_from of this method "
            f"({type(named).__name__}) name two sources of the teacher: leave out one"
        )
    if cfg.teacher_ckpt is None:
        return named if takes_teacher else NoTeacher()
    if not takes_teacher:
        raise UserError("teacher_ckpt is given, but nothing here learns from a teacher: see model=")
    given = cfg.teacher_ckpt
    return FromCheckpoint(list(map(str, given)) if OmegaConf.is_list(given) else str(given))


def build_module(
    cfg: DictConfig, task: Task, data: L.LightningDataModule, teacher: nn.Module | None
) -> BaseModule:
    """Create the module, passing the teacher, labels and cache if its constructor takes them."""
    if teacher is not None and not hasattr(data, "prepared"):
        log.info(
            "%s has no `prepared`: the teacher runs in every step instead of once per sample (see "
            "kd_lightning.data.types.Offers)",
            type(data).__name__,
        )
    module = make(cfg.model, "model")
    available = {
        "teacher": teacher,
        "labels": getattr(data, "labels", None),
        "cache": shared_cache(cfg),
    }
    takes = inspect.signature(module.func).parameters
    with explaining("model"):
        return module(task=task, **{name: v for name, v in available.items() if name in takes})


def shared_cache(cfg: DictConfig) -> TeacherCache:
    """Return the cache with the configured settings, shared by the jobs of one process."""
    # Otherwise each job of a sweep would read and check the teacher's outputs again.
    settings = OmegaConf.to_yaml(cfg.cache, resolve=True)
    if settings not in CACHES:
        CACHES[settings] = make(cfg.cache, "cache")
    return CACHES[settings]


def build_trainer(cfg: DictConfig, profiler: Profiler) -> L.Trainer:
    """Create the trainer with its callbacks and loggers.

    Raises:
        UserError: if there are more CPU processes than cores, or others than were started.
    """
    callbacks = _all_of(make(cfg.callbacks, "callbacks"), L.Callback, "callbacks")
    if cfg.get("quantize"):
        callbacks += _all_of({"": make(cfg.quantize, "quantize")}, L.Callback, "quantize")
    loggers = _all_of(make(cfg.get("logger") or {}, "logger"), Logger, "logger")
    # Without a terminal, a progress bar would only fill a log file.
    is_watched = cfg.trainer.enable_progress_bar and sys.stdout.isatty()
    with explaining("trainer"):
        trainer = make(cfg.trainer, "trainer")(
            callbacks=[c for c in callbacks if is_watched or not isinstance(c, ProgressBar)],
            logger=loggers,
            plugins=[AtomicCheckpointIO(), *ranks().plugins()],
            enable_progress_bar=is_watched,
            profiler=profiler,
        )
    ranks().check(trainer)
    cores = os.cpu_count() or 1
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores:
        raise UserError(
            f"trainer.devices={trainer.num_devices} asks for more processes than "
            f"the {cores} cores of this machine; set trainer.devices={cores} or lower"
        )
    return trainer


def _all_of(made: dict[str, Any], kind: type[T], section: str) -> list[T]:
    for name, one in made.items():
        if not isinstance(one, kind):
            raise UserError(f"{section}.{name} is a {type(one).__name__}, not a {kind.__name__}")
    return list(made.values())
