"""The teacher of a job: the user's own, or out of the store, trained first if need be.

A teacher's training is a job like any other: this job's configuration with the changes
that its section ``pretrain`` lists, in a run directory inside the store.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from kd_lightning import __version__
from kd_lightning.data.memory import InMemoryDataModule
from kd_lightning.runs.build import build_data
from kd_lightning.runs.directory import find_checkpoint, plain
from kd_lightning.teachers.store import TeacherStore, teacher_key
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.hashing import sources

# What says where and how a training runs, not what comes out of it.
INCIDENTAL = {
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "default_root_dir",
    "enable_progress_bar",
    "enable_model_summary",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "use_distributed_sampler",
    "profiler",
}

# The callbacks that only watch or write; any other may have a part in what comes out.
WATCHING = {"last", "learning_rate", "progress", "layout", "pictures", "gradients"}


def find_teachers(
    cfg: DictConfig, data: InMemoryDataModule, train: Callable[[DictConfig], Any]
) -> list[Path]:
    """The checkpoints of a job's teacher or teachers; ``train`` makes what is missing.

    Raises:
        UserError: if a finished teacher of the store has no checkpoint.
    """
    if cfg.teacher_ckpt:
        given = cfg.teacher_ckpt
        several = given if OmegaConf.is_list(given) else [given]
        return [find_checkpoint(str(path)) for path in several]
    job = teacher_job(cfg)

    def pretrain(home: Path) -> None:
        job.run_dir = str(home)
        job.resume = str(home) if home.is_dir() else None
        train(job)

    same = {**plain(job.data), "seed": 0} == {**plain(cfg.data), "seed": 0}  # only orders them
    key = key_of(job, data if same else build_data(job), world_size=1)
    home = TeacherStore(cfg.teacher_store).find_or_train(key, pretrain)
    if not find_checkpoint(home).is_file():
        raise UserError(f"the teacher in {home} has lost its checkpoint: delete it to train anew")
    return [find_checkpoint(home)]


def publish(cfg: DictConfig, data: InMemoryDataModule, world_size: int) -> None:
    """Offer what a job has just trained as a teacher to others."""
    TeacherStore(cfg.teacher_store).publish(key_of(cfg, data, world_size), Path(cfg.run_dir))


def teacher_job(cfg: DictConfig) -> DictConfig:
    """This job's configuration with the changes that ``pretrain`` lists."""
    job = copy.deepcopy(cfg)
    OmegaConf.set_struct(job, False)
    as_written, values = plain(cfg.pretrain, resolve=False), plain(cfg.pretrain)
    for name, change in as_written.items():
        if isinstance(change, dict) and "_target_" in change:
            OmegaConf.update(job, name, change, merge=False)  # it refers to the teacher's job
        else:
            OmegaConf.update(job, name, values[name])  # what it refers to is the student's
    return job


def key_of(job: DictConfig, data: InMemoryDataModule, world_size: int) -> str:
    """The key of what a teacher's job trains; it changes with the code of the network."""
    job = copy.deepcopy(job)
    job.run_dir = ""  # callbacks may name it
    model, trainer = plain(job.model), plain(job.trainer)
    recipe = {
        "model": model,
        "trainer": {k: v for k, v in trainer.items() if k not in INCIDENTAL},
        "seed": job.seed,
        "data": [data.fingerprint, data.batch_size, world_size],
        "version": __version__,
        "code": sources([get_object(model["net"]["_target_"]).__module__]),
        "callbacks": {k: v for k, v in plain(job.callbacks).items() if k not in WATCHING},
    }
    return teacher_key(model["net"]["_target_"].rpartition(".")[2], recipe)
