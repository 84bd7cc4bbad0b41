"""From a configuration to objects. Classes get plain values, never a DictConfig."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from kd_lightning.data.memory import InMemoryDataModule
from kd_lightning.data.types import DataSpec
from kd_lightning.modules.base import Learner
from kd_lightning.nets.ensemble import Ensemble
from kd_lightning.runs.checkpoints import load_network, read_checkpoint
from kd_lightning.runs.directory import load_run, untrained
from kd_lightning.utils.errors import UserError

log = logging.getLogger(__name__)

ALIKE = 0.03  # means and standard deviations of 0…1 that a part of the data may change so much


def make(config: Any) -> Any:
    """What a section of the configuration describes."""
    return instantiate(config, _convert_="all")


def build_data(cfg: DictConfig) -> InMemoryDataModule:
    """The data module, with its data read."""
    data = make(cfg.data)
    data.prepare_data()
    data.setup()
    return data


def build_module(cfg: DictConfig, data: InMemoryDataModule, teachers: Sequence[Path]) -> Learner:
    """The module that trains, with the teacher or teachers that lie in checkpoints."""
    module, given = make(cfg.model), {"spec": data.spec, "labels": data.splits["train"].target}
    if teachers:
        return module(teacher=build_teacher(cfg, data.spec, teachers), **given)
    return module(**given) if "untrained" in cfg.model else module(spec=data.spec)


def try_out(cfg: DictConfig, data: InMemoryDataModule) -> None:
    """Build what will train, with an untrained teacher where there is none yet.

    Raises:
        UserError: if networks, layers or settings do not fit, or a teacher is given that
            nothing asks.
    """
    if cfg.teacher_ckpt and not {"teacher", "untrained"} & set(cfg.model):
        raise UserError("teacher_ckpt is given, but nothing here learns from a teacher: see model=")
    if "untrained" in cfg.model:
        build_module(cfg, data, [])
    elif "teacher" in cfg.model and not cfg.teacher_ckpt:
        teacher = untrained(cfg.model.teacher, data.spec)
        make(cfg.model)(spec=data.spec, teacher=teacher, labels=data.splits["train"].target)


def build_teacher(cfg: DictConfig, spec: DataSpec, checkpoints: Sequence[Path]) -> nn.Module:
    """One network as ``net@teacher`` says; of several, each as its own run directory says."""
    if len(checkpoints) == 1:
        net = untrained(cfg.model.teacher, spec)
        load_network(net, checkpoints[0], option="net@teacher")
        _say_other_normalisation(checkpoints[0], read_checkpoint(checkpoints[0]).get("spec"), spec)
        return net
    return Ensemble([_member(checkpoint, spec) for checkpoint in checkpoints])


def _member(checkpoint: Path, spec: DataSpec) -> nn.Module:
    home = checkpoint.parent.parent
    if not (home / ".hydra").is_dir():
        raise UserError(
            f"teacher_ckpt: {checkpoint} lies in no run directory, where each of several "
            "teachers says what it is"
        )
    run = load_run(home, checkpoint.stem)
    if run.spec[:2] != spec[:2]:
        raise UserError(
            f"teacher_ckpt: {run.path} was trained on samples of {run.spec.input_shape} in "
            f"{run.spec.num_classes} classes, these are {spec.input_shape} in {spec.num_classes}"
        )
    _say_other_normalisation(run.path, run.spec.plain(), spec)
    return run.network


def _say_other_normalisation(where: Path, found: Any, spec: DataSpec) -> None:
    """Warn of a teacher that learnt from images on another scale than it will see."""
    if not isinstance(found, dict):
        return  # a plain state dict does not say
    there, here = (torch.tensor([*s.mean, *s.std]) for s in (DataSpec.from_plain(found), spec))
    if there.shape != here.shape or (there - here).abs().max() > ALIKE:
        log.warning(
            "the teacher in %s was trained on images of mean %s and standard deviation %s, these "
            "are normalised by %s and %s: its answers may be worth little",
            *(where, found["mean"], found["std"], list(spec.mean), list(spec.std)),
        )
