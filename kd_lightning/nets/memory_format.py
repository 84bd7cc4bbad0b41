"""The memory format of a network's convolutions."""

from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.nets.ensemble import Ensemble


def with_channels_last(net: nn.Module) -> nn.Module:
    """Convert a network to the memory format ``torch.channels_last``.

    A step of the reference student takes 6.3 ms instead of 9.5 ms, and a forward pass of the
    reference teacher 25 ms instead of 35 ms (batch 64, two CPU cores). Tensor cores of GPUs
    prefer the same format. Other people's networks are left as they are: one that flattens with
    ``view`` fails in this format, and its owner may use it elsewhere.
    """
    for part in net.members if isinstance(net, Ensemble) else [net]:
        if type(part).__module__.partition(".")[0] not in KNOWN_TO_FLATTEN_SAFELY:
            continue
        for layer in part.modules():
            if isinstance(layer, nn.MaxPool2d) and _pool_in_order not in _hooks(layer):
                layer.register_forward_hook(_pool_in_order)
        part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return net


KNOWN_TO_FLATTEN_SAFELY = ("kd_lightning", "torchvision")  # packages of networks


def _hooks(layer: nn.Module) -> list[Any]:
    return list(layer._forward_hooks.values())


def _pool_in_order(pool: nn.Module, args: Any, output: Any) -> None:
    """Convert a gradient to the memory format of its map before it reaches a pooling layer.

    A gradient that passes backward through a flatten is contiguous in N×C×H×W, and torch then
    copies the large map twice: 2.7 of 17.4 ms of a step of the reference student (batch 256).
    """
    if isinstance(output, Tensor) and output.requires_grad:
        output.register_hook(lambda g: g.contiguous(memory_format=torch.channels_last))
