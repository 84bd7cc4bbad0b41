"""From a configuration to objects. Classes get plain values, never a DictConfig."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from kd_lightning.batch import DataSpec
from kd_lightning.checkpoints import load_network
from kd_lightning.data.memory import InMemoryDataModule
from kd_lightning.ensemble import Ensemble
from kd_lightning.errors import UserError
from kd_lightning.modules.learner import Learner
from kd_lightning.runs import load_run, untrained


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
    module = make(cfg.model)
    if not teachers:
        return module(spec=data.spec)
    teacher = build_teacher(cfg, data.spec, teachers)
    return module(spec=data.spec, teacher=teacher, labels=data.splits["train"].target)


def try_out(cfg: DictConfig, data: InMemoryDataModule) -> None:
    """Build what will train, with an untrained teacher where there is none yet.

    Raises:
        UserError: if networks, layers or settings do not fit.
    """
    module = make(cfg.model)
    if "teacher" in cfg.model and not cfg.teacher_ckpt:
        teacher = untrained(cfg.model.teacher, data.spec)
        module(spec=data.spec, teacher=teacher, labels=data.splits["train"].target)


def build_teacher(cfg: DictConfig, spec: DataSpec, checkpoints: Sequence[Path]) -> nn.Module:
    """One network as ``net@teacher`` says; of several, each as its own run directory says."""
    if len(checkpoints) == 1:
        net = untrained(cfg.model.teacher, spec)
        return load_network(net, checkpoints[0], option="net@teacher")
    return Ensemble([_member(checkpoint, spec) for checkpoint in checkpoints])


def _member(checkpoint: Path, spec: DataSpec) -> nn.Module:
    run = load_run(checkpoint.parent.parent, checkpoint.stem)
    if run.spec[:2] != spec[:2]:
        raise UserError(
            f"teacher_ckpt: {run.path} was trained on samples of {run.spec.input_shape} in "
            f"{run.spec.num_classes} classes, these are {spec.input_shape} in {spec.num_classes}"
        )
    return run.network
