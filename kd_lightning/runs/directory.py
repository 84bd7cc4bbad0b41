"""A run directory: write it, find it, load it.

.hydra/         config.yaml (resolved), overrides.yaml
checkpoints/    best.ckpt, last.ckpt
evidence.npz    tables for pictures, of the best epoch on validation data
metrics.json    flat; written last, so its presence says that the run is finished
tensorboard/  metrics.csv  train.log
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from kd_lightning.data.batches import Normalizer
from kd_lightning.data.types import DataSpec
from kd_lightning.runs.checkpoints import load_network, read_checkpoint
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.partials import built


def find_checkpoint(path: str | Path, name: str = "best") -> Path:
    """A checkpoint file: the path itself, or the one of that name in a run directory.

    Of a chain it is that of its last link.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    links = sorted((path / "links").glob("[0-9]*"), key=lambda link: int(link.name))
    return (links or [path])[-1] / "checkpoints" / f"{name}.ckpt"


def start_anew(run_dir: Path) -> None:
    """Remove what would make a run look finished, or lead a resumption back to an older one."""
    for name in ("metrics.json", "checkpoints/last.ckpt"):
        (run_dir / name).unlink(missing_ok=True)


def plain(config: Any, resolve: bool = True) -> dict[str, Any]:
    """A section of a configuration as an ordinary dictionary."""
    values = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def write_config(run_dir: Path, cfg: DictConfig, overrides: list[str] | None) -> None:
    """Keep the resolved configuration and, where a user typed it, what was typed."""
    folder = run_dir / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())
    if overrides is not None:
        _write(folder / "overrides.yaml", OmegaConf.to_yaml(overrides).encode())


def write_evidence(run_dir: Path, tables: Mapping[str, Tensor]) -> None:
    """Keep what pictures are drawn from, as float32: see ``metrics.Evidence``."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {k: table.float().cpu().numpy() for k, table in tables.items()}
    np.savez(file, **arrays)
    _write(run_dir / "evidence.npz", file.getvalue())


def write_metrics(run_dir: Path, metrics: Mapping[str, Any]) -> None:
    """Finish a run directory."""
    text = json.dumps(dict(metrics), indent=2) + "\n"
    _write(run_dir / "metrics.json", text.encode())


def read_metrics(run_dir: Path) -> dict[str, Any]:
    """The figures of a finished run."""
    return json.loads((run_dir / "metrics.json").read_text())


def typed(cfg: DictConfig, overrides: list[str] | None) -> dict[str, Any]:
    """What the user typed for this run, ``key=value``, by key; options by their names."""
    pairs = (override.lstrip("+~").partition("=") for override in overrides or [])
    return {key.removeprefix("net@"): _typed_value(cfg, key, text) for key, _, text in pairs}


def choices(cfg: DictConfig) -> dict[str, Any]:
    """What else tells this run from others, flat: options by name, settings, the seed."""
    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    distils = "objective" in cfg.model
    sections = {name: cfg[name] for name in (("method", "student") if distils else ("teacher",))}
    options = {
        name: chosen.get(name) or chosen.get(f"net@{name}")
        for name in (*sections, "teacher", "data")
    }
    settings = {k: v for n, s in sections.items() for k, v in _leaves(plain(s), n)}
    flat = {**options, **settings, "seed": cfg.seed}
    return {name: value for name, value in flat.items() if value is not None}


def _typed_value(cfg: DictConfig, key: str, text: str) -> Any:
    value = OmegaConf.select(cfg, key) if "@" not in key else None
    return value if isinstance(value, int | float | str) else text


def _leaves(section: dict[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """The settings in a section; a function or class that is not its own by its last name."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.{key}")
        elif key == "_target_" and "." in name:
            yield name, value.rpartition(".")[2]
        elif not key.startswith("_"):
            yield f"{name}.{key}", value


def commit() -> str:
    """The commit this code stands at, or an empty string outside a clone."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@dataclass(frozen=True)
class Run:
    """A finished run, ready to use.

    Attributes:
        path: the run directory.
        config: its resolved configuration.
        network: the trained network, in evaluation mode, on the CPU.
        spec: shape, classes, mean and standard deviation of the data it was trained on.
        metrics: its figures, empty while the run is not finished.
    """

    path: Path
    config: DictConfig
    network: nn.Module
    spec: DataSpec
    metrics: dict[str, Any]

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities, N×K, of uint8 images, N×C×H×W (or N×H×W where C is 1).

        Raises:
            TypeError: if the images are of another type.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"predict takes uint8 images, got {images.dtype}")
        images = images.reshape(-1, *self.spec.input_shape)
        return self.network(Normalizer(self.spec)(images.float())).softmax(dim=1)


def load_run(path: str | Path, checkpoint: str = "best") -> Run:
    """The configuration and the best network of a run directory, or that of another checkpoint.

    Nothing in the directory can run code: weights are loaded as plain tensors, and the
    network's class must be one of this package's, of torchvision's models, or a
    ``torch.nn.Module`` that the caller has imported already.

    Args:
        path: a run directory, or a chain's.
        checkpoint: ``best`` or ``last``.

    Raises:
        UserError: if the directory lacks a configuration or checkpoint, or names a class
            that is not trusted.

    >>> load_run("outputs/none")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    kd_lightning.utils.errors.UserError: outputs/none is not a run directory: ...
    """
    path = Path(path)
    config_file = path / ".hydra" / "config.yaml"
    if not config_file.is_file():
        raise UserError(f"{path} is not a run directory: it has no .hydra/config.yaml")
    config = OmegaConf.load(config_file)
    assert isinstance(config, DictConfig)
    checkpoint_file = find_checkpoint(path, checkpoint)
    content = read_checkpoint(checkpoint_file)
    name, spec = content["network"], DataSpec.from_plain(content["spec"])
    described = OmegaConf.select(config.model, name)
    _refuse_strangers(described)
    net = untrained(described, spec)
    load_network(net, checkpoint_file, option=f"net@{name}")
    finished = (path / "metrics.json").is_file()
    return Run(path, config, net.eval(), spec, read_metrics(path) if finished else {})


def untrained(described: Any, spec: DataSpec) -> nn.Module:
    """The network of a configuration, to be filled from a checkpoint: it fetches no weights."""
    given = {"weights": None} if "weights" in described else {}
    return built(
        instantiate(described, _convert_="all"), spec.input_shape, spec.num_classes, **given
    )


def _refuse_strangers(config: Any) -> None:
    """Only networks may be named in a configuration that comes from elsewhere."""
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
        found = getattr(import_module(module), name, None)
        return getattr(found, "__module__", None) == module
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
