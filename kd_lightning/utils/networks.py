"""Calling networks: passing their inputs, and finding the logits in their outputs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from kd_lightning.utils.errors import UserError

# One tensor, B×…, or several by the name of the argument they are passed as.
Inputs = Tensor | Mapping[str, Tensor]


def call(net: nn.Module, inputs: Inputs) -> Tensor:
    """Run a network and return its logits.

    Args:
        net: network that takes one tensor, or keyword arguments if the inputs are a mapping.
        inputs: B×… each.

    Returns:
        Logits, B×C or B×L×C.

    Raises:
        UserError: if the output contains no logits.
    """
    return logits_of(net(**inputs) if isinstance(inputs, Mapping) else net(inputs), net)


def logits_of(output: Any, net: nn.Module) -> Tensor:
    """Return the logits in a network's output.

    They are the output itself, its attribute or item ``logits`` (as in transformers), or the
    first item of a tuple (in networks that also return features or auxiliary logits).

    Raises:
        UserError: if the output contains no logits.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif hasattr(output, "logits"):
        found = output.logits
    else:
        found = output[0] if isinstance(output, tuple | list) and output else None
    if not isinstance(found, Tensor):
        raise UserError(
            f"{type(net).__name__} returns a {type(output).__name__} without logits: return a "
            "tensor, a tuple that starts with it, or an object or dictionary with 'logits'"
        )
    return found


def apply(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Apply a function to each tensor of the inputs."""
    if isinstance(inputs, Mapping):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return function(inputs)


def size_of(inputs: Inputs) -> int:
    """Return the number of samples, B."""
    # Any of the tensors will do: all of them have one entry per sample.
    return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)


def fitting(inputs: Inputs, net: nn.Module) -> Inputs:
    """Move the inputs to the network's device, and floating-point ones to its dtype.

    With ``trainer.precision=bf16-true`` a network does not accept float32.
    """
    # One parameter stands for all: networks here are on one device and of one dtype.
    weight = next(net.parameters(), None)
    if weight is None:
        return inputs
    return apply(
        inputs, lambda x: x.to(weight.device, weight.dtype if x.is_floating_point() else x.dtype)
    )


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode within a context, then restore each module's mode."""
    # By module, because train() would also unfreeze modules that the user keeps in eval mode.
    modes = {part: part.training for part in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
