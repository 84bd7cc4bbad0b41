"""Tests of fake quantisation against integers computed by hand, and of what it leaves alone."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from kd_lightning.compress.fake_quantize import (
    MOMENTUM,
    InputQuantizer,
    activate,
    calibrate,
    fake_quantize,
    freeze_ranges,
    is_quantized,
    plain_copy,
    quantized_layers,
)
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.nets.taps import tapped
from kd_lightning.utils.errors import UserError


def student(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return StudentCNN((1, 8, 8), 10)


def batch(count: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def rounded(values: np.ndarray, scale: np.ndarray, zero: int, low: int, high: int) -> np.ndarray:
    """Values as integers represent them, in float64."""
    return (np.clip(np.rint(values / scale) + zero, low, high) - zero) * scale


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_are_integers_times_a_scale_per_channel(bits: int) -> None:
    layer = nn.Conv2d(3, 5, 3)
    weight = layer.weight.detach().double().numpy().copy()
    fake_quantize(layer, bits)
    most = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / most
    expected = rounded(weight, scale, 0, -most, most)
    assert np.abs(layer.weight.detach().numpy() - expected).max() < 1e-6
    assert len(np.unique(np.rint(layer.weight.detach().numpy() / scale))) <= 2 * most + 1


def test_gradients_pass_the_rounding_of_weights_unchanged() -> None:
    layer = fake_quantize(nn.Linear(6, 4), 4)
    sign = torch.randn(4, 6)
    (layer.weight * sign).sum().backward()
    assert torch.equal(layer.parametrizations.weight.original.grad, sign)


def test_inputs_are_rounded_in_the_moving_average_of_ranges() -> None:
    quantizer = InputQuantizer(8)
    one, other = torch.randn(50), 3 * torch.randn(50) + 1
    quantizer(one)
    found = quantizer(other)
    ends = []
    for f in (torch.min, torch.max):
        a, b = float(f(one)), float(f(other))
        ends.append(a + MOMENTUM * (b - a))
    scale = (ends[1] - ends[0]) / 255
    zero = round(-ends[0] / scale)
    expected = rounded(other.double().numpy(), np.array(scale), zero, 0, 255)
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_no_gradient_outside_of_the_range() -> None:
    quantizer = InputQuantizer(8)
    quantizer(torch.tensor([-1.0, 1.0]))
    quantizer.eval()
    x = torch.tensor([-3.0, 0.3, 5.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 0]


def test_zero_is_exact_even_where_all_values_are_positive() -> None:
    quantizer = InputQuantizer(8)
    quantizer(torch.tensor([2.0, 3.0]))
    assert quantizer(torch.tensor([0.0, -0.0])).tolist() == [0, 0]
    assert float(quantizer.low) == 0


def test_a_trained_network_is_not_changed_by_its_inputs() -> None:
    """Also where it was put into evaluation mode before it was quantised."""
    net = fake_quantize(student().eval())
    calibrate(net, batch())
    before = copy.deepcopy(net.state_dict())
    first = net(batch())
    net(10 * batch(seed=2))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert torch.equal(net(batch()), first)


def test_frozen_ranges_stay_in_training() -> None:
    net = fake_quantize(student())
    net(batch())
    freeze_ranges(net)
    before = [layer.input_quantizer.high.item() for _, layer in quantized_layers(net)]
    net(10 * batch(seed=2))
    assert [layer.input_quantizer.high.item() for _, layer in quantized_layers(net)] == before


def test_copies_have_ranges_of_their_own() -> None:
    """Callbacks measure with copies, which must not observe for the original."""
    net = fake_quantize(student())
    net(batch())
    before = copy.deepcopy(net.state_dict())
    copy.deepcopy(net)(10 * batch(seed=2))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_calibration_takes_the_extremes_of_the_unrounded_network() -> None:
    net, plain = fake_quantize(student().eval(), 3), student().eval()
    calibrate(net, batch(150))
    names = [name for name, _ in quantized_layers(net)]
    for name, layer in quantized_layers(net):
        seen: list[Tensor] = []
        hook = plain.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0].detach())
        )
        plain(batch(150))
        hook.remove()
        assert float(layer.input_quantizer.high) == pytest.approx(max(0, float(seen[0].max())))
        assert float(layer.input_quantizer.low) == pytest.approx(min(0, float(seen[0].min())))
    assert names == ["features.0", "classifier.1"]


def test_switched_off_it_is_the_network_that_it_was() -> None:
    net, plain = fake_quantize(student(), 2), student()
    activate(net, False)
    assert torch.equal(net(batch()), plain(batch()))
    activate(net)
    assert not torch.equal(net(batch()), plain(batch()))


def test_taps_find_the_same_layers() -> None:
    plain, net = student(), fake_quantize(student())
    paths = [name for name, m in plain.named_modules() if name and not list(m.children())]
    assert {k: v.shape for k, v in tapped(net, batch(), paths).items()} == {
        k: v.shape for k, v in tapped(plain, batch(), paths).items()
    }


def test_state_is_restored_exactly() -> None:
    net, other = fake_quantize(student()), fake_quantize(student(seed=5))
    net(batch())
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(batch()), net.eval()(batch()))


def test_a_plain_copy_has_the_rounded_weights_and_leaves_the_original() -> None:
    net = fake_quantize(student(), 4)
    net(batch())
    net.eval()
    before = net(batch())
    plain, steps = plain_copy(net)
    assert not is_quantized(plain)
    assert [type(m) for m in plain.modules()] == [type(m) for m in student().modules()]
    for name, layer in quantized_layers(net):
        assert torch.equal(plain.get_submodule(name).weight, layer.weight)
        assert steps[name] == tuple(v.item() for v in layer.input_quantizer.steps())
    assert torch.equal(net(batch()), before)
    assert plain_copy(plain)[1] == {}


def test_attention_is_quantised_where_its_layers_are_called() -> None:
    """The output projection of nn.MultiheadAttention is used without being called."""
    net = fake_quantize(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    assert [name for name, _ in quantized_layers(net)] == ["linear1", "linear2"]
    net(torch.randn(2, 3, 8)).sum().backward()


class ByName(nn.Module):
    """A network that calls its layer with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


def test_inputs_given_by_keyword_are_rounded() -> None:
    net = ByName().eval()
    fake_quantize(net, 2)
    calibrate(net, torch.linspace(-1, 1, 40).view(10, 4))
    x = torch.full((1, 4), 0.2)
    weight = net.layer.weight.sum(1)
    scale, _ = net.layer.input_quantizer.steps()
    assert torch.allclose(net(x)[0], (0.2 / scale).round() * scale * weight + net.layer.bias)
    plain, _ = plain_copy(net)
    assert torch.allclose(plain(x)[0], 0.2 * weight + net.layer.bias)


def test_weights_computed_by_hooks_are_named() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    prune.random_unstructured(net[1], "weight", 0.5)
    with pytest.raises(UserError, match="the weight of 1 is computed by a hook"):
        fake_quantize(net)
    assert not is_quantized(net)


def test_what_cannot_be_quantised_is_named() -> None:
    with pytest.raises(UserError, match="Flatten has nothing to quantise"):
        fake_quantize(nn.Flatten())
    for bits in (1, 9, 4.0):
        with pytest.raises(UserError, match=f"must lie in 2…8, got {bits}"):
            fake_quantize(student(), bits)  # pyright: ignore[reportArgumentType]
    net = fake_quantize(student())
    with pytest.raises(UserError, match="is quantised already"):
        fake_quantize(net)
    with pytest.raises(UserError, match="has no range of activations yet: use the best"):
        plain_copy(net)
