"""Finished runs, ready to use."""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from kd_lightning.data.batches import Normalizer
from kd_lightning.data.types import ImageSpec, Spec
from kd_lightning.runs.checkpoints import load_network, read_checkpoint
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.partials import built
from kd_lightning.utils.run_directory import (
    CONFIG,
    FACTS,
    Record,
    RunDirectory,
    find_checkpoint,
    read_run,
)


@dataclass(frozen=True, eq=False)
class Run(RunDirectory):
    """A run with its network.

    Attributes:
        path: the run directory.
        facts: ``run.json``: role, task, seed, settings, teacher …; empty for directories that
            were written before it was.
        metrics: ``metrics.json``; empty while the run is not finished.
        config: the resolved configuration.
        network: the trained network, in evaluation mode, on the CPU.
        spec: shape, classes, mean and standard deviation of the data it was trained on.
    """

    config: DictConfig
    network: nn.Module
    spec: ImageSpec

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities, N×K, of uint8 images, N×C×H×W (or N×H×W where C is 1).

        Raises:
            TypeError: if the images are of another type.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"predict takes uint8 images, got {images.dtype}")
        if not self.spec.mean:
            raise UserError(
                "the data of this run did not say how they are normalised: call run.network on "
                "inputs as your datamodule makes them"
            )
        images = images.reshape(-1, *self.spec.input_shape)
        return self.network(Normalizer(self.spec)(images.float())).softmax(dim=1)


def load_run(path: str | Path, checkpoint: str = "best") -> Run:
    """Load a run directory: its network with the weights of a checkpoint, facts and figures.

    Nothing in the directory can run code: weights are loaded as plain tensors, and the
    network's class must be one of this package's, of torchvision's models, or a
    ``torch.nn.Module`` that the caller has imported already.

    Args:
        path: a run directory, or a chain's, of which it is the last link's network.
        checkpoint: ``best`` or ``last``.

    Raises:
        UserError: if the directory lacks a configuration or checkpoint, or names a class
            that is not trusted.

    >>> load_run("outputs/none")
    Traceback (most recent call last):
    kd_lightning.utils.errors.UserError: outputs/none is not a run directory: no .hydra/config.yaml
    """
    path = Path(path)
    config_file = path / CONFIG
    if not config_file.is_file():
        raise UserError(f"{path} is not a run directory: no {CONFIG}")
    config = OmegaConf.load(config_file)
    assert isinstance(config, DictConfig)
    checkpoint_file = find_checkpoint(path, checkpoint)
    content = read_checkpoint(checkpoint_file)
    if not {"network", "spec"} <= content.keys():
        raise UserError(f"{checkpoint_file} does not say which network it holds for what data")
    name, spec = content["network"], ImageSpec.from_plain(content["spec"])
    described = OmegaConf.select(config.model, name)
    _refuse_strangers(described)
    net = untrained(described, spec)
    load_network(net, checkpoint_file, option=f"net@{name}")
    run = read_run(path, convert=lambda _: {})
    return Run(path, Record(path / FACTS, run.facts), run.metrics, config, net.eval(), spec)


def untrained(described: Any, spec: Spec) -> nn.Module:
    """The network of a configuration, to be filled from a checkpoint: it fetches no weights."""
    given = {"weights": None} if "weights" in described else {}
    return built(instantiate(described, _convert_="all"), *spec.network_arguments, **given)


def _refuse_strangers(config: Any) -> None:
    """Allow nothing but networks in a configuration that may come from a stranger."""
    if OmegaConf.is_dict(config):
        if "_target_" in config and not _is_network(config._target_):
            raise UserError(
                f"the run names {config._target_}, which is no network known here; "
                "import its class first if you trust it"
            )
        for value in config.values():
            _refuse_strangers(value)
    elif OmegaConf.is_list(config):
        for value in config:
            _refuse_strangers(value)


def _is_network(target: str) -> bool:
    module, _, name = target.rpartition(".")
    if module.startswith("kd_lightning.nets."):
        try:
            found = getattr(import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name != module:  # a package that a network of ours needs
                raise
            return False
        return getattr(found, "__module__", None) == module
    # Only what is imported already: importing a module runs its code.
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)
