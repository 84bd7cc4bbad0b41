"""Fake quantisation: networks that compute in floating point what integers would give.

The weights and the inputs of each convolutional and linear layer are rounded to the values that
integers of some width can hold: weights per output channel and symmetric, inputs per tensor, with a
range that is observed. Gradients pass the rounding unchanged, and stop outside of a range (Jacob et
al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", arXiv 1712.05877).

Layers keep their names and outputs, so taps, losses between layers and caches see no difference.
There is no folding of batch normalisation: it scales a channel's weights and their largest value
alike, so the integers are the same before and after it.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.partials import built

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# Attention computes with this layer's weight without calling it, so its input is never seen.
UNCALLED = nn.modules.linear.NonDynamicallyQuantizableLinear
FEWEST_BITS, MOST_BITS = 2, 8
MOMENTUM = 0.05  # of the moving average of ranges, per batch
SMALLEST = 1e-8  # range, so that a constant input does not divide by zero


class WeightQuantizer(nn.Module):
    """Rounding of a weight to integers of some width, for each output channel.

    The scale of a channel is its largest absolute weight over 2^(bits−1) − 1.

    Args:
        bits: width of the integers.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.most = 2 ** (bits - 1) - 1
        self.is_active = True

    def scale(self, weight: Tensor) -> Tensor:
        """Return the scale of each output channel, C, of a weight, C×…."""
        # float32, which is all that torch rounds by, also where the weight is float64
        return weight.detach().flatten(1).abs().amax(1).clamp_min(SMALLEST).float() / self.most

    def forward(self, weight: Tensor) -> Tensor:
        if not self.is_active:
            return weight
        zeros = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(
            weight, self.scale(weight), zeros, 0, -self.most, self.most
        )


class InputQuantizer(nn.Module):
    """Rounding of a layer's input to integers of some width, in the range that was observed.

    In training, the range is a moving average of the smallest and largest value of the batches;
    see :func:`calibrate` for a trained network. It contains 0, which is rounded to itself.

    Args:
        bits: width of the integers.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2**bits - 1
        self.is_active, self.is_frozen, self.is_calibrating = True, False, False
        for name in ("low", "high", "seen"):  # floating point, which DDP broadcasts on any backend
            self.register_buffer(name, torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.is_calibrating or (self.training and self.is_active and not self.is_frozen):
            self._observe(inputs.detach())
        if not self.is_active or self.is_calibrating:
            return inputs
        return torch.fake_quantize_per_tensor_affine(inputs, *self.steps(), 0, self.levels)

    def steps(self) -> tuple[Tensor, Tensor]:
        """Return the scale, float32, and the integer that stands for 0, int32."""
        scale = (self.high - self.low).clamp_min(SMALLEST).float() / self.levels
        return scale, (-self.low / scale).round().clamp(0, self.levels).to(torch.int32)

    @torch.no_grad()
    def _observe(self, inputs: Tensor) -> None:
        low, high = inputs.amin().clamp(max=0).float(), inputs.amax().clamp(min=0).float()
        if self.is_calibrating:
            self.low.copy_(torch.minimum(self.low, low))
            self.high.copy_(torch.maximum(self.high, high))
        else:
            # No branch on a tensor, for which a GPU would have to wait.
            weight = torch.where(self.seen > 0, MOMENTUM, 1.0)
            self.low.lerp_(low, weight)
            self.high.lerp_(high, weight)
        self.seen.fill_(1)


def _quantize_input(
    layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # A function of the module, because a hook that held the quantizer would share it with copies.
    quantizer: Any = layer.input_quantizer
    if inputs:
        return (quantizer(inputs[0]), *inputs[1:]), named
    return inputs, {**named, "input": quantizer(named["input"])}


def fake_quantize(network: nn.Module, bits: int = 8) -> nn.Module:
    """Quantise the weights and inputs of a network's convolutional and linear layers, in place.

    Args:
        network: the network.
        bits: width of the integers, 2…8. Files for devices exist for 8; lower ones show what they
            would cost.

    Returns:
        The network. Its layers keep their names; its ``state_dict`` also has the ranges.

    Raises:
        UserError: if the width is out of range, or the network has nothing to quantise.

    >>> net = fake_quantize(nn.Sequential(nn.Linear(4, 3)), bits=4)
    >>> len(net[0].weight.detach()[0].unique()) <= 2**4
    True
    """
    if not isinstance(bits, int) or not FEWEST_BITS <= bits <= MOST_BITS:
        raise UserError(f"quantize.bits must lie in {FEWEST_BITS}…{MOST_BITS}, got {bits}")
    if is_quantized(network):
        raise UserError(f"this {type(network).__name__} is quantised already")
    layers = {name: m for name, m in network.named_modules() if isinstance(m, LAYERS)}
    found = [m for m in layers.values() if not isinstance(m, UNCALLED)]
    for name, layer in layers.items():
        if "weight" not in layer._parameters and not parametrize.is_parametrized(layer, "weight"):
            raise UserError(
                f"the weight of {name or type(layer).__name__} is computed by a hook, as of the "
                "old weight_norm, spectral_norm or prune: use torch.nn.utils.parametrizations, "
                "or prune.remove"
            )
    if not found:
        raise UserError(
            f"{type(network).__name__} has nothing to quantise: no convolutional or linear layer"
        )
    for layer in found:
        # unsafe: without a trial, which weights that are not loaded yet (meta) cannot pass
        parametrize.register_parametrization(layer, "weight", WeightQuantizer(bits), unsafe=True)
        layer.input_quantizer = InputQuantizer(bits)
        layer.register_forward_pre_hook(_quantize_input, with_kwargs=True)
        layer.train(layer.training)  # new modules are in training mode, also in a trained network
    return network


def fake_quantized(*arguments: Any, net: Callable[..., nn.Module], bits: int = 8) -> nn.Module:
    """Build a network by a factory and :func:`fake_quantize` it; for configurations.

    Args:
        *arguments: what networks of the data are built from.
        net: the network's class or factory.
        bits: width of the integers.
    """
    return fake_quantize(built(net, *arguments), bits)


def quantized_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the quantised layers of a network by path."""
    for name, module in network.named_modules():
        if isinstance(getattr(module, "input_quantizer", None), InputQuantizer):
            yield name, module


def is_quantized(network: nn.Module) -> bool:
    """Return whether a network has fake-quantised layers."""
    return any(True for _ in quantized_layers(network))


def bits_of(network: nn.Module) -> int:
    """Return the width of the integers of a fake-quantised network."""
    quantizer = next(m for m in network.modules() if isinstance(m, InputQuantizer))
    return quantizer.levels.bit_length()


def activate(network: nn.Module, active: bool = True) -> None:
    """Switch the fake quantisation of a network on or off."""
    for module in network.modules():
        if isinstance(module, WeightQuantizer | InputQuantizer):
            module.is_active = active


def freeze_ranges(network: nn.Module, frozen: bool = True) -> None:
    """Let the ranges of inputs stay as they are, or be observed in training."""
    for module in network.modules():
        if isinstance(module, InputQuantizer):
            module.is_frozen = frozen


def has_ranges(network: nn.Module) -> bool:
    """Return whether the range of some layer's input has been observed."""
    return any(bool(m.seen) for m in network.modules() if isinstance(m, InputQuantizer))


@torch.no_grad()
def calibrate(network: nn.Module, inputs: Tensor) -> None:
    """Set the ranges to the smallest and largest values for given inputs (post-training).

    The layers see what the network computes in floating point.

    Args:
        network: a fake-quantised network, in evaluation mode.
        inputs: B×…, such as training images without augmentation.
    """
    quantizers = [m for m in network.modules() if isinstance(m, InputQuantizer)]
    activate(network, False)
    for quantizer in quantizers:
        quantizer.low.zero_()
        quantizer.high.zero_()
        quantizer.is_calibrating = True
    try:
        for part in inputs.split(64):
            network(part)
    finally:
        for quantizer in quantizers:
            quantizer.is_calibrating = False
        activate(network)


def plain_copy(network: nn.Module) -> tuple[nn.Module, dict[str, tuple[float, int]]]:
    """Return a copy of a network with rounded weights, and how each layer's input is rounded.

    The copy has no trace of the fake quantisation; its inputs are not rounded.

    Returns:
        The copy; and by path of each quantised layer, the scale of its input and the integer that
        stands for 0.

    Raises:
        UserError: if ranges have not been observed.
    """
    twin, steps = copy.deepcopy(network), dict[str, tuple[float, int]]()
    for name, layer in list(quantized_layers(twin)):
        quantizer = layer.input_quantizer
        assert isinstance(quantizer, InputQuantizer)
        if not quantizer.seen:
            raise UserError(
                f"the layer {name or type(layer).__name__} has no range of activations yet: use "
                "the best checkpoint of a finished run"
            )
        scale, zero = quantizer.steps()
        steps[name] = float(scale), int(zero)
        weight = nn.Parameter(layer.weight.detach().clone())  # pyright: ignore
        # By hand: remove_parametrizations() changes the class, which copies share.
        layer.__class__ = type(layer).__bases__[0]
        del layer.parametrizations, layer.input_quantizer
        layer.register_parameter("weight", weight)
        for key, hook in list(layer._forward_pre_hooks.items()):
            if hook is _quantize_input:
                del layer._forward_pre_hooks[key], layer._forward_pre_hooks_with_kwargs[key]
    return twin, steps
