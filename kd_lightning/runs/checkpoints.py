"""Checkpoint files, written atomically and read without executing code."""

import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn

from kd_lightning.data.types import ImageSpec
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_atomically

# Where other programs keep the weights in a checkpoint, and what wraps their names.
USUAL_KEYS = ("state_dict", "model_state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning plugin that writes a checkpoint beside its target and renames it.

    A process that is killed while saving leaves either the old checkpoint or the new one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Plain values on the CPU, whatever Lightning passes.
        return read_checkpoint(path)


def _verify(path: str | Path) -> None:
    """Compare every record of a checkpoint with its checksum.

    ``torch.save`` writes a zip archive with a CRC-32 of each tensor, but ``torch.load`` does not
    look at them: a flipped bit in a weight would be used. A record takes 1 ms per MB.

    Raises:
        BadZipFile: if a record is damaged.
    """
    if zipfile.is_zipfile(path):  # not the format of before torch 1.6, which has no checksums
        with zipfile.ZipFile(path) as archive:
            # torch.save does not compress: records larger than the file would unfold in memory.
            if sum(member.file_size for member in archive.infolist()) > Path(path).stat().st_size:
                raise zipfile.BadZipFile("its records are compressed")
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"the record {damaged} is damaged")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU.

    Raises:
        UserError: if the file is missing, damaged, or holds anything but plain values.
    """
    # Opening a pipe would wait for whoever writes to it.
    if os.path.lexists(path) and not (Path(path).is_dir() or Path(path).is_file()):
        raise UserError(f"{path} is not a checkpoint file")
    try:
        _verify(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"there is no checkpoint file {path}") from error
    except UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint of weights: it is damaged, or holds objects that would "
            "have to run code to be loaded, which is refused"
        ) from error
    # torch.load raises many types for damaged files, among them RuntimeError and EOFError.
    except Exception as error:
        raise UserError(f"the checkpoint {path} is damaged or cut short") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def recorded_spec(path: str | Path, plain: Any) -> ImageSpec:
    """Return the specification of the data that a checkpoint records.

    Raises:
        UserError: if it is none.
    """
    try:
        return ImageSpec.from_plain(plain)
    except UserError as error:
        raise UserError(f"{path} does not describe the data of its network: {error}") from error


def network_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a checkpoint's network, without the prefix of the module.

    A checkpoint of another program may hold them under one of :data:`USUAL_KEYS`, with the
    prefixes of DataParallel or ``torch.compile``; or it is a plain state dict itself.
    """
    state = next((checkpoint[k] for k in USUAL_KEYS if _is_mapping(checkpoint.get(k))), checkpoint)
    prefix = f"{checkpoint['network']}." if "network" in checkpoint else ""
    named = {str(k): v for k, v in state.items()}
    found = {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
    while wrapper := next((w for w in WRAPPERS if found and _all_start(found, w)), None):
        found = {k.removeprefix(wrapper): v for k, v in found.items()}
    return found


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _all_start(names: Iterable[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def load_network(net: nn.Module, path: str | Path, option: str) -> nn.Module:
    """Load the weights of a checkpoint into a network.

    Args:
        net: the network, built for the current data.
        path: the checkpoint.
        option: option that chooses the network, named in the error, such as ``net@teacher``.

    Raises:
        UserError: if the checkpoint cannot be read or holds another network.
    """
    state = network_state(read_checkpoint(path))
    # Compared here, because load_state_dict() lists every differing key on a line of its own.
    difference = describe_mismatch(net.state_dict(), state)
    if difference:
        raise UserError(
            f"{path} holds another network than {type(net).__name__} as configured for this "
            f"data: {difference}; see {option}= and data="
        )
    if broken := [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise UserError(f"{path} holds weights that are not finite, such as {broken[0]}")
    net.load_state_dict(state)
    return net


def describe_mismatch(wanted: Mapping[str, Tensor], found: Mapping[str, Any]) -> str:
    """Describe briefly how two state dicts differ; empty if they fit."""
    missing = [k for k in wanted if k not in found]
    extra = [k for k in found if k not in wanted]
    differing = [
        f"{k} is {_kind(found[k])} there and {_kind(wanted[k])} here"
        for k in wanted
        if k in found and _kind(found[k]) != _kind(wanted[k])
    ]
    parts = [f"it lacks {k}" for k in missing[:1]] + [f"it has {k}" for k in extra[:1]]
    return "; ".join([*parts, *differing[:2]])


def _kind(value: Any) -> str:
    """Describe what must be equal for a tensor to be loaded into another: ``[16, 1, 3, 3]``."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    # Precisions may differ, but integers or complex numbers are other weights.
    other = "" if value.is_floating_point() else f" of {str(value.dtype).removeprefix('torch.')}"
    layout = "" if value.layout == torch.strided else f" {str(value.layout).removeprefix('torch.')}"
    return f"{list(value.shape)}{other}{layout}"
