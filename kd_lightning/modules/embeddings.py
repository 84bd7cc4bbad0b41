"""Embeddings of labelled training samples, on which linear probes are solved."""

from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.data.types import UNLABELLED, Prepared
from kd_lightning.nets.taps import tapped
from kd_lightning.teachers.cache import TeacherCache
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import evaluating, fitting


def labelled_embeddings(
    datamodule: Any,
    net: nn.Module,
    path: str,
    device: torch.device,
    cache: TeacherCache | None = None,
) -> tuple[Tensor, Tensor]:
    """Return embeddings and classes of the training samples that have a label.

    Args:
        datamodule: offers ``labels`` and ``prepared``; the samples are not augmented.
        net: the network, evaluated without gradient.
        path: the layer that returns the embedding.
        device: where to compute it.
        cache: keeps the embeddings for later runs, if the network is frozen.

    Returns:
        N×D and N, on the device.

    Raises:
        UserError: if the datamodule offers neither, or no sample has a label.
    """
    prepare, labels = (getattr(datamodule, name, None) for name in ("prepared", "labels"))
    if prepare is None or labels is None:
        raise UserError(
            "a linear probe needs a datamodule with `labels` and `prepared`: see "
            "kd_lightning.data.types.Offers"
        )
    prepared, is_labelled = prepare("train", augmented=False), labels != UNLABELLED
    if not is_labelled.any():
        raise UserError("a linear probe needs labels: all training samples are unlabelled")
    kept = cache.outputs(net, prepared, device, [path]) if cache is not None else None
    if kept is not None:
        positions = is_labelled.nonzero().flatten()
        parts = [kept.read(part, 0)[path].to(device) for part in positions.split(1024)]
    else:
        parts = _computed(prepared, is_labelled, net, path, device)
    found = torch.cat([part.flatten(1).float() for part in parts])
    return found, labels[is_labelled].to(device)


def _computed(
    prepared: Prepared, is_labelled: Tensor, net: nn.Module, path: str, device: torch.device
) -> list[Tensor]:
    parts = []
    with torch.no_grad(), evaluating(net):
        for _, index, inputs in prepared.batches(device):
            assert isinstance(inputs, Tensor)
            mine = is_labelled[index.cpu()].to(inputs.device)
            if mine.any():
                parts.append(tapped(net, fitting(inputs[mine], net), [path])[path])
    return parts
