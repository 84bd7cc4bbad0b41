"""From a configuration to objects. Classes get plain values, never a DictConfig."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from kd_lightning.batch import DataSpec
from kd_lightning.checkpoints import load_network
from kd_lightning.data.memory import InMemoryDataModule
from kd_lightning.modules.learner import Learner


def make(config: Any) -> Any:
    """What a section of the configuration describes."""
    return instantiate(config, _convert_="all")


def build_data(cfg: DictConfig) -> InMemoryDataModule:
    """The data module, with its data read."""
    data = make(cfg.data)
    data.prepare_data()
    data.setup()
    return data


def build_module(cfg: DictConfig, spec: DataSpec, teacher: Path | None) -> Learner:
    """The module that trains, with the teacher that lies in a checkpoint."""
    module = make(cfg.model)
    if teacher is None:
        return module(spec=spec)
    net = make(cfg.model.teacher)(spec.input_shape, spec.num_classes)
    return module(spec=spec, teacher=load_network(net, teacher, option="net@teacher"))
