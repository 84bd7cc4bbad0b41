"""Pretrained weights in files, and networks that are filled with them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kd_lightning.utils.errors import UserError

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
WRAPPERS = ("state_dict", "model_state_dict", "model")  # where other programs keep the weights


def is_file(weights: str) -> bool:
    """Return whether weights are given as a path, and not by name."""
    return str(weights).endswith(SUFFIXES) or Path(str(weights)).is_file()


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a state dict from a file, without running code from it.

    Raises:
        UserError: if the file is missing, damaged, or holds anything but tensors.
    """
    if not Path(path).is_file():
        raise UserError(f"weights={path}: there is no such file")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f"weights={path} needs the package safetensors") from error
    except Exception as error:  # damage, or objects that would run code
        raise UserError(f"weights={path} cannot be read as plain weights") from error
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError(f"weights={path} holds no state dict")
    return {str(k).removeprefix("module."): v for k, v in found.items()}


def fill(net: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy the weights that fit; only the last layer may be left out.

    Args:
        net: the network.
        state: the weights.
        what: the weights, for the error.

    Raises:
        UserError: if other weights do not fit.
    """
    own = net.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    # The last layer by order of registration: torchvision calls it fc, classifier or head.
    last_layer = list(own)[-1].rpartition(".")[0]
    left = net.load_state_dict(fitting, strict=False).missing_keys
    if others := [k for k in left if k.rpartition(".")[0] != last_layer]:
        # E.g. the position embedding of a vision transformer, or the weights of another network.
        raise UserError(
            f"{what} do not fit images of this size, or this network (at {others[0]}); use the "
            "size that they were trained on, or weights=null"
        )
