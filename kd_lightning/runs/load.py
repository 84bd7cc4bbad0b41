"""Loading of runs for inference."""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
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

PREDICTED_AT_ONCE = 256  # images, so that any number of them fits into memory


@dataclass(frozen=True, eq=False)
class Run(RunDirectory):
    """Run with its trained network.

    Attributes:
        path: the run directory.
        facts: content of ``run.json``: role, task, seed, settings, teacher …; empty for
            directories of version 0.1.
        metrics: content of ``metrics.json``; empty until the run is finished.
        config: the resolved configuration.
        network: the trained network, in evaluation mode, on the CPU.
        spec: shape, classes, mean and standard deviation of the training data.
    """

    config: DictConfig
    network: nn.Module
    spec: ImageSpec

    @torch.inference_mode()
    def predict(self, images: Tensor | np.ndarray) -> Tensor:
        """Return class probabilities of images.

        Args:
            images: uint8, a tensor or an array, of the shape the run was trained on: one image or
                N of them, channels first or last, or without channels if C = 1.

        Returns:
            Probabilities, N×K.

        Raises:
            TypeError: if the images are not uint8.
            UserError: if their shape does not fit or fits in several ways, or the run does not
                record how its data were normalised.
        """
        x = torch.as_tensor(images)
        # Floats are rejected, because nothing shows whether they lie in 0…1 or 0…255.
        if x.dtype != torch.uint8:
            raise TypeError(f"predict takes uint8 images, got {x.dtype}")
        if not self.spec.mean:
            raise UserError(
                "the data of this run did not say how they are normalised: call run.network on "
                "inputs as your datamodule returns them"
            )
        parts = channels_first(x, self.spec.input_shape).split(PREDICTED_AT_ONCE)
        normalize = Normalizer(self.spec)
        return torch.cat([self.network(normalize(part.float())) for part in parts]).softmax(dim=1)


def channels_first(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images in any usual layout as N×C×H×W.

    Args:
        images: one image or several, C×H×W, H×W×C, or H×W if C = 1.
        shape: (C, H, W).

    Raises:
        UserError: if no layout fits, or several do and give different images.

    >>> channels_first(torch.zeros(5, 28, 28), (1, 28, 28)).shape
    torch.Size([5, 1, 28, 28])
    """
    c, h, w = shape
    layouts = [((c, h, w), (0, 1, 2)), ((h, w, c), (2, 0, 1))]
    layouts += [((h, w), ())] if c == 1 else []
    found: list[Tensor] = []
    for layout, order in layouts:
        if tuple(images.shape[-len(layout) :]) != layout or images.dim() - len(layout) not in (
            0,
            1,
        ):
            continue
        many = images.reshape(-1, *layout)
        as_first = many.permute(0, *(1 + i for i in order)) if order else many[:, None]
        # One channel, last or first, is the same image.
        if not any(torch.equal(as_first, other) for other in found):
            found.append(as_first)
    if len(found) == 1:
        return found[0]
    problem = "fit no layout" if not found else "fit several layouts"
    raise UserError(
        f"images of shape {tuple(images.shape)} {problem}: this run takes N×{c}×{h}×{w} or "
        f"N×{h}×{w}×{c}" + (f", or N×{h}×{w}" if c == 1 else "")
    )


def load_run(path: str | Path, checkpoint: str = "best") -> Run:
    """Load a run: its facts, its figures, and its network with the weights of a checkpoint.

    Loading executes no code from the directory: weights are plain tensors, and the network's
    class must be defined in ``kd_lightning.nets``, which includes an adapter to torchvision, or
    be a ``torch.nn.Module`` that the caller has imported.

    Args:
        path: a run directory; of a chain, the last link's network is loaded.
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
    # From the checkpoint, not the data: a run can be loaded on a machine without its data.
    name, spec = content["network"], ImageSpec.from_plain(content["spec"])
    described = OmegaConf.select(config.model, name)
    _refuse_strangers(described)
    net = untrained(described, spec)
    load_network(net, checkpoint_file, option=f"net@{name}")
    run = read_run(path, convert=lambda _: {})
    return Run(path, Record(path / FACTS, run.facts), run.metrics, config, net.eval(), spec)


def untrained(described: Any, spec: Spec) -> nn.Module:
    """Build a configured network whose weights will be loaded from a checkpoint."""
    # Pretrained weights would be downloaded only to be overwritten.
    given = {"weights": None} if "weights" in described else {}
    return built(instantiate(described, _convert_="all"), *spec.network_arguments, **given)


def _refuse_strangers(config: Any) -> None:
    """Reject a configuration that names anything but networks.

    Instantiating a configuration calls every ``_target_`` in it, and a run directory may come
    from an untrusted source.
    """
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
        # Only what the module defines: its imports, such as nn and torch, are reachable, too.
        return getattr(found, "__module__", None) == module
    # Only modules that are imported already, since importing one runs its code.
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)
