"""Taps: intermediate outputs by module path, from networks that need no changes.

A path is a module's dotted name (``layer3.1.relu``). If the module returns a tuple or a
dictionary, ``:`` and a position or key select an item (``encoder:0``, ``backbone:out``). If
a module runs several times in one pass, its last output is used.
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
SHOWN = 24  # paths listed in an error message
# Modules whose output shape identifies maps, see stages().
MAKES_MAPS = (
    *(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)


def tapped(net: nn.Module, inputs: Inputs, paths: Sequence[str]) -> Outputs:
    """Run a network and return its ``logits`` and its outputs at the paths.

    Args:
        net: the network.
        inputs: a batch, one tensor or several by argument name.
        paths: module paths.

    Returns:
        The logits under ``logits``, and a tensor under each path.

    Raises:
        UserError: if a path does not exist, did not run, or did not return a tensor.
    """
    # Hooks for one pass only. Permanent ones would be copied by deepcopy, break pickling, and
    # run in passes that need no features. The stack removes them also if the network raises.
    found: Outputs = {}
    with ExitStack() as hooks:
        for path in paths:
            handle = find(net, path).register_forward_hook(_recorder(found, path))
            hooks.callback(handle.remove)
        logits = call(net, inputs)
    if silent := [path for path in paths if path not in found]:
        raise UserError(f"{type(net).__name__} did not run its layer {silent[0]}")
    return {"logits": logits, **found}


def find(net: nn.Module, path: str) -> nn.Module:
    """Return the module at a path; an item after ``:`` is ignored.

    Raises:
        UserError: if there is none; the message lists existing paths, the most similar first.
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
        # Cloned, because the next layer may work in place (torchvision's ReLUs do). Not
        # detached: the student's gradient flows through its taps.
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
    """Return the tensors in a layer's output by position or key, a single one under ``""``."""
    if isinstance(output, dict):
        items = {str(k): v for k, v in output.items()}
    elif isinstance(output, list | tuple):
        items = {str(k): v for k, v in enumerate(output)}
    else:
        items = {"": output}
    return {k: v for k, v in items.items() if isinstance(v, Tensor)}


class Layer(NamedTuple):
    """One module's output in a pass.

    Attributes:
        path: the module's dotted name, with the item if its output has several.
        module: the module.
        shape: of the output for one sample, without the batch dimension.
        depth: position in the order of completion, from 0 (first) to 1 (last).
    """

    path: str
    module: nn.Module
    shape: tuple[int, ...]
    depth: float


def layers(net: nn.Module, sample: Inputs) -> list[Layer]:
    """Return the outputs of all modules in the order in which the modules finish."""
    # The order of execution, not of named_modules(), which is the order of construction.
    ran: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}

    def note(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            for key, tensor in _tensors(output).items():
                name = f"{path}:{key}" if key else path
                ran.pop(name, None)  # moves a repeated module to its last run
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
    """Return the outputs of a pass without side effects: evaluation mode, no gradient."""
    # Evaluation mode keeps the running statistics of batch norms as they are.
    with evaluating(net):
        return tapped(net, sample, paths)


def stages(found: list[Layer]) -> list[Layer]:
    """Return the last map (C×H×W) at each resolution, from early to late."""
    # Three dimensions do not make a map: tokens with a head dimension and channels-last tensors
    # have them, too. A map has the shape of some convolution's, normalisation's or pooling's
    # output. 1×1 maps are embeddings.
    shapes = {layer.shape for layer in found if isinstance(layer.module, MAKES_MAPS)}
    maps = [layer for layer in found if layer.shape in shapes and layer.shape[1] > 1]
    last = {layer.shape[1:]: layer for layer in maps}
    return sorted(last.values(), key=lambda layer: layer.depth)


def embedding(found: list[Layer]) -> Layer:
    """Return the input of the last linear layer, or the last output if there is none."""
    # The input is not a module's output by itself: reshaping between modules has no path. It is
    # taken as the last output before the layer with as many values as the layer's input, else
    # the last one of any size.
    linear = [i for i, layer in enumerate(found) if isinstance(layer.module, nn.Linear)]
    if not linear or not linear[-1]:
        return found[-1]
    before, taken = found[: linear[-1]], found[linear[-1]].module.in_features
    return ([layer for layer in before if math.prod(layer.shape) == taken] or before)[-1]


def pairs(student: list[Layer], teacher: list[Layer]) -> list[tuple[Layer, Layer]]:
    """Return corresponding stages of both networks, from early to late."""
    # Matched greedily from the last stage backwards: each stage of the student takes the nearest
    # stage of the teacher that precedes the one already taken, so that no pairs cross.
    matched: list[tuple[Layer, Layer]] = []
    left = stages(teacher)
    for s in reversed(stages(student)):
        if left:
            best = min(left, key=lambda t: _distance(s, t))
            matched.insert(0, (s, best))
            left = left[: left.index(best)]
    return matched


def _distance(s: Layer, t: Layer) -> float:
    # A factor of two in resolution counts as much as a fifth of the depth. Depth alone would
    # pair maps of unequal size; resolution alone cannot tell stages of one size apart.
    return abs(math.log2(s.shape[1] / t.shape[1])) + 5 * abs(s.depth - t.depth)
