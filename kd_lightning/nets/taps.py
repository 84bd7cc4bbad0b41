"""Intermediate outputs by module path, of networks that nobody edited.

A path is a module's dotted name (``layer3.1.relu``). Where that module returns a tuple or
a dictionary, ``:`` and a position or key name the item (``encoder:0``, ``backbone:out``).
Of a module that runs several times in one pass, the last output counts.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import Inputs, call, evaluating

Outputs = dict[str, Tensor]
SHOWN = 24  # paths in an error
MAKES_MAPS = (
    *(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)


def tapped(net: nn.Module, inputs: Inputs, paths: Sequence[str]) -> Outputs:
    """A network's ``logits`` and its outputs at the paths.

    Raises:
        UserError: if a path is not there, did not run, or did not return a tensor.
    """
    found: Outputs = {}
    with ExitStack() as hooks:  # removed also where the network raises
        for path in paths:
            handle = find(net, path).register_forward_hook(_recorder(found, path))
            hooks.callback(handle.remove)
        logits = call(net, inputs)
    if silent := [path for path in paths if path not in found]:
        raise UserError(f"{type(net).__name__} did not run its layer {silent[0]}")
    return {"logits": logits, **found}


def find(net: nn.Module, path: str) -> nn.Module:
    """The module at a path, whatever item of its output is meant.

    Raises:
        UserError: if there is none; it lists those that exist, the nearest first.
    """
    name = path.partition(":")[0]
    try:
        if name:
            return net.get_submodule(name)
    except AttributeError:
        pass
    existing = [known for known, _ in net.named_modules() if known]
    nearest = get_close_matches(name, existing, n=len(existing) or 1, cutoff=0.0)
    more = f" and {len(nearest) - SHOWN} more (see kd-inspect)" if len(nearest) > SHOWN else ""
    raise UserError(
        f"{type(net).__name__} has no layer {name!r}; it has {', '.join(nearest[:SHOWN])}{more}"
    )


def _recorder(found: Outputs, path: str) -> Callable[..., None]:
    def record(module: nn.Module, args: Any, output: Any) -> None:
        # a copy: the next layer may work in place (torchvision's do)
        found[path] = _item(output, path).clone()

    return record


def _item(output: Any, path: str) -> Tensor:
    name, _, key = path.partition(":")
    items = _tensors(output)
    if key in items:
        return items[key]
    names = ", ".join(f"{name}:{k}" if k else name for k in items) or "no tensor"
    raise UserError(f"the layer {path} returns a {type(output).__name__} with {names}")


def _tensors(output: Any) -> dict[str, Tensor]:
    """The tensors in a layer's output by position or key; a single one has none."""
    if isinstance(output, dict):
        items = {str(k): v for k, v in output.items()}
    elif isinstance(output, list | tuple):
        items = {str(k): v for k, v in enumerate(output)}
    else:
        items = {"": output}
    return {k: v for k, v in items.items() if isinstance(v, Tensor)}


class Layer(NamedTuple):
    """What one module did in a pass.

    Attributes:
        path: its dotted name, and which item of its output where there are several.
        module: itself.
        shape: of its output for one sample, without the batch.
        depth: when it finished, from 0 (first) to 1 (last).
    """

    path: str
    module: nn.Module
    shape: tuple[int, ...]
    depth: float


def layers(net: nn.Module, sample: Inputs) -> list[Layer]:
    """What all modules give, a tensor each, in the order in which they finish."""
    ran: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}

    def note(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            for key, tensor in _tensors(output).items():
                name = f"{path}:{key}" if key else path
                ran.pop(name, None)  # of several runs the last counts
                ran[name] = (module, tuple(tensor.shape[1:]))

        return record

    with ExitStack() as hooks:
        for path, module in net.named_modules():
            if path:
                hooks.callback(module.register_forward_hook(note(path)).remove)
        dry_run(net, sample, ())
    size = max(len(ran) - 1, 1)
    return [Layer(path, *what, i / size) for i, (path, what) in enumerate(ran.items())]


@torch.no_grad()
def dry_run(net: nn.Module, sample: Inputs, paths: Sequence[str]) -> Outputs:
    """The outputs of a pass that leaves no trace: evaluation mode, no gradient."""
    with evaluating(net):
        return tapped(net, sample, paths)


def stages(found: list[Layer]) -> list[Layer]:
    """The last map at each resolution, from large to small.

    A map (C×H×W) has a shape that a convolution, its normalisation or a pooling gives too:
    some networks have their channels last elsewhere.
    """
    shapes = {layer.shape for layer in found if isinstance(layer.module, MAKES_MAPS)}
    maps = [layer for layer in found if layer.shape in shapes and layer.shape[1] > 1]
    last = {layer.shape[1:]: layer for layer in maps}
    return sorted(last.values(), key=lambda layer: layer.depth)


def embedding(found: list[Layer]) -> Layer:
    """What goes into the last linear layer; the last output where there is none.

    That is the last output before it with as many values as it takes, else just the last.
    """
    linear = [i for i, layer in enumerate(found) if isinstance(layer.module, nn.Linear)]
    if not linear or not linear[-1]:
        return found[-1]
    before, taken = found[: linear[-1]], found[linear[-1]].module.in_features
    return ([layer for layer in before if math.prod(layer.shape) == taken] or before)[-1]


def pairs(student: list[Layer], teacher: list[Layer]) -> list[tuple[Layer, Layer]]:
    """Stages of both networks that correspond, from early to late.

    From the last backwards, each stage of the student takes the nearest of the teacher's
    that come before its successor's.
    """
    matched: list[tuple[Layer, Layer]] = []
    left = stages(teacher)
    for s in reversed(stages(student)):
        if left:
            best = min(left, key=lambda t: _distance(s, t))
            matched.insert(0, (s, best))
            left = left[: left.index(best)]
    return matched


def _distance(s: Layer, t: Layer) -> float:
    """Twice the resolution counts as much as a fifth of the way through the network."""
    return abs(math.log2(s.shape[1] / t.shape[1])) + 5 * abs(s.depth - t.depth)
