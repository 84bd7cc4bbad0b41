"""Checkpoint files: written whole or not at all, read without running any code in them."""

import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn

from kd_lightning.utils.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a kill leaves the old file or the new one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        UserError: if the file is missing, damaged, or holds anything but plain values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"there is no checkpoint file {path}") from error
    except UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint of weights: it is damaged, or holds objects that would "
            "have to run code to be loaded, which is refused"
        ) from error
    except Exception as error:  # whatever reading a damaged file leads to
        raise UserError(f"the checkpoint {path} is damaged or cut short") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def network_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the network a checkpoint was made for.

    A plain state dict, as ``torch.save(net.state_dict(), …)`` leaves it, is taken as it is.
    """
    state = checkpoint.get("state_dict", checkpoint)
    prefix = f"{checkpoint['network']}." if "network" in checkpoint else ""
    named = {str(k): v for k, v in state.items()} if isinstance(state, Mapping) else {}
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}


def load_network(net: nn.Module, path: str | Path, option: str) -> nn.Module:
    """Fill ``net`` with the weights in a checkpoint.

    Args:
        net: a network as built for the data at hand.
        path: the checkpoint.
        option: what the user would change if it does not fit, e.g. ``net@teacher``.

    Raises:
        UserError: if the checkpoint cannot be read or holds another network.
    """
    state = network_state(read_checkpoint(path))
    difference = describe_mismatch(net.state_dict(), state)
    if difference:
        raise UserError(
            f"{path} holds another network than {type(net).__name__} as configured for this "
            f"data: {difference}; see {option}= and data="
        )
    net.load_state_dict(state)
    return net


def describe_mismatch(wanted: Mapping[str, Tensor], found: Mapping[str, Any]) -> str:
    """How two sets of weights differ, in a few words; empty where they fit."""
    missing = [k for k in wanted if k not in found]
    extra = [k for k in found if k not in wanted]
    shapes = [
        f"{k} is {list(getattr(found[k], 'shape', []))} there and {list(wanted[k].shape)} here"
        for k in wanted
        if k in found and getattr(found[k], "shape", None) != wanted[k].shape
    ]
    parts = [f"it lacks {k}" for k in missing[:1]] + [f"it has {k}" for k in extra[:1]]
    return "; ".join([*parts, *shapes[:2]])
