"""Loading of runs for inference."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from kd_lightning.data.batches import Normalizer
from kd_lightning.data.types import ImageSpec, Spec
from kd_lightning.nets.preprocessing import connect
from kd_lightning.runs.arguments import takes
from kd_lightning.runs.checkpoints import (
    describe_mismatch,
    load_network,
    network_state,
    read_checkpoint,
    recorded_spec,
)
from kd_lightning.runs.recorded import read_config, recorded_dirs
from kd_lightning.runs.trust import is_network, targets
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.partials import built
from kd_lightning.utils.reading import is_there, texts
from kd_lightning.utils.run_directory import (
    CONFIG,
    FACTS,
    Record,
    RunDirectory,
    find_checkpoint,
    read_run,
)
from kd_lightning.utils.text import one_line, printable

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

    def export(self, path: str | Path, *, quantize: str | None = None) -> dict[str, Any]:
        """Write the network to a file for a device, and verify the file on all test images.

        Args:
            path: the file; its suffix says the format: ``.onnx``, ``.pt2`` or ``.pte``.
            quantize: ``int8`` or ``none``; by default as the run is quantised.

        Returns:
            Whether the file ``passed``, and figures: see :func:`kd_lightning.runs.export.export`.

        Raises:
            UserError: if the suffix is unknown, the images cannot be read, or the network cannot
                be exported so.
        """
        from kd_lightning.runs.export import export_as  # imported late: it loads runs itself

        return export_as(self, Path(path), quantize)

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


def load_run(path: str | Path, checkpoint: str = "best", *, trust: bool = False) -> Run:
    """Load a run: its facts, its figures, and its network with the weights of a checkpoint.

    Loading executes no code from the directory: weights are plain tensors, and the network's
    class must be defined in ``kd_lightning.nets``, which includes an adapter to torchvision, or
    be a ``torch.nn.Module`` of PyTorch, of another library that networks come from, or of the
    caller, who has imported it.

    Args:
        path: a run directory; of a chain, the last link's network is loaded.
        checkpoint: ``best`` or ``last``.
        trust: build the network from any class or function that the run names, and import it
            from the folders that the run was given with ``--config-dir``. This runs their code.

    Raises:
        UserError: if the directory lacks a configuration or checkpoint, a file in it is damaged,
            or it names a class that is not trusted.

    >>> load_run("outputs/none")
    Traceback (most recent call last):
    kd_lightning.utils.errors.UserError: outputs/none is not a run directory: no .hydra/config.yaml
    """
    path = Path(path)
    config_file = path / CONFIG
    if not is_there(config_file):
        raise UserError(f"{path} is not a run directory: no {CONFIG}")
    config = read_config(config_file)
    if not isinstance(config, DictConfig):
        raise UserError(f"{config_file} holds a list, not a configuration")
    checkpoint_file = find_checkpoint(path, checkpoint)
    content = read_checkpoint(checkpoint_file)
    if not {"network", "spec"} <= content.keys():
        raise UserError(f"{checkpoint_file} does not say which network it holds for what data")
    # From the checkpoint, not the data: a run can be loaded on a machine without its data.
    name, spec = content["network"], recorded_spec(checkpoint_file, content["spec"])
    described = _description(config, config_file, name)
    if trust:
        add_to_path(recorded_dirs(path))
    else:
        _refuse_strangers(path, described)
    state = network_state(content)
    if not all(map(_is_whole, state.values())):
        raise UserError(f"the weights in {checkpoint_file} are not those of a network")
    net = _network(config_file, described, spec, state)
    load_network(net, checkpoint_file, option=f"net@{name}")
    run = read_run(path, convert=lambda _: {})
    return Run(path, Record(path / FACTS, run.facts), run.metrics, config, net.eval(), spec)


def untrained(described: Any, spec: Spec) -> nn.Module:
    """Build a configured network whose weights will be loaded from a checkpoint."""
    return build_network(without_weights(described), spec)


def build_network(described: Any, spec: Spec) -> nn.Module:
    """Build a configured network, with pretrained weights if it names some."""
    made = instantiate(described, _convert_="all")
    # A class that is not called yet (_partial_) is told the shapes; others create the network.
    net = made if isinstance(made, nn.Module) else built(made, *spec.network_arguments)
    return connect(net, spec)


def without_weights(described: Any) -> Any:
    """Return the description of a network without the loading of pretrained weights.

    They would be downloaded only to be overwritten.
    """
    if not isinstance(described, Mapping | DictConfig):
        return described
    changed = {str(name): without_weights(described[name]) for name in described}
    target = changed.get("_target_")
    if isinstance(target, str) and takes(target, "load_weights"):
        return {**changed, "load_weights": False}
    off: dict[str, Any] = {"weights": None, "pretrained": False}
    return {**changed, **{name: off[name] for name in off if target and changed.get(name)}}


def add_to_path(folders: Sequence[str]) -> None:
    """Make the code in folders importable, after all other code."""
    sys.path += [folder for folder in folders if folder not in sys.path]


def _description(config: DictConfig, file: Path, name: Any) -> dict[str, Any]:
    """Return the description of a network in a configuration, as plain values."""
    try:
        section: Any = OmegaConf.to_container(config, resolve=True)
        for key in ("model", *str(name).split(".")):  # students.first, of mutual learning
            section = section[key]
    except (OmegaConfBaseException, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{file} does not describe a network model.{name!r:.80}") from error
    if not isinstance(section, dict) or "_target_" not in section:
        raise UserError(f"{file} does not describe a network model.{name!r:.80}")
    # Resolved already: another interpolation could turn into something that was not checked.
    if any("${" in text for text in texts(section)):
        raise UserError(f"{file}: the network model.{name} has an interpolation in a value")
    return {str(key): value for key, value in section.items()}


def _network(
    file: Path, described: dict[str, Any], spec: ImageSpec, state: Mapping[str, Any]
) -> nn.Module:
    """Build the network of a run, if the weights in its checkpoint are of its size."""
    try:
        # First without memory: a configuration may describe a network of any size.
        with torch.device("meta"):
            net = untrained(described, spec)
        if isinstance(net, nn.Module) and not describe_mismatch(net.state_dict(), state):
            net = untrained(described, spec)
    except (InstantiationException, OmegaConfBaseException, TypeError, AttributeError) as error:
        raise UserError(f"{file}: the network cannot be built: {one_line(error)}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{file}: {described['_target_']} does not create a network")
    return net


def _is_whole(weights: Any) -> bool:
    """Return whether a tensor has its numbers in the file, rather than one number repeated."""
    if not isinstance(weights, torch.Tensor):
        return False
    return weights.numel() * weights.element_size() <= weights.untyped_storage().nbytes()


def _refuse_strangers(path: Path, described: dict[str, Any]) -> None:
    """Reject the description of a network that names anything but networks."""
    for target in targets(described):
        if not is_network(target):
            raise UserError(
                f"the run names {printable(target)}, which is no network known here: "
                "import its class first if you trust it, or say trust=true (in Python trust=True)"
            )
