"""Wide ResNets: published numbers of parameters, shapes of the stages, blocks written out."""

from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from kd_lightning.nets.wide_resnet import PreActivationBlock, WideResNet
from kd_lightning.utils.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf" / "net"
CIFAR = (3, 32, 32)
PUBLISHED = {"wrn_16_2": 703_284, "wrn_40_1": 569_780, "wrn_40_2": 2_255_156}


def settings(name: str) -> dict[str, Any]:
    """Return the settings in a network's YAML file, without its target."""
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert values.pop("_target_") == "kd_lightning.nets.wide_resnet.WideResNet"
    assert values.pop("_partial_") is True
    return values


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def derived(channels: int, classes: int, depth: int, width: int) -> int:
    """Count parameters by formula: a convolution has k²·in·out, a batch norm 2·channels."""
    total, inputs = 9 * channels * 16, 16
    for outputs in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs
            total += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    return total + 2 * inputs + (inputs + 1) * classes


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_parameters_match_the_published_ones(name: str) -> None:
    chosen = settings(name)
    assert chosen.pop("dropout") == 0
    assert parameters(WideResNet(CIFAR, 100, **chosen)) == PUBLISHED[name]
    assert derived(3, 100, **chosen) == PUBLISHED[name]


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 4), (22, 3)])
def test_parameters_follow_depth_and_width(depth: int, width: int) -> None:
    net = WideResNet((1, 28, 28), 7, depth=depth, width=width)
    assert parameters(net) == derived(1, 7, depth, width)


def outputs(net: nn.Module, x: Tensor, *names: str) -> dict[str, Tensor]:
    """Return the outputs of modules by path, and the logits."""
    found: dict[str, Tensor] = {}
    for name in names:
        net.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: found.update({name: output})
        )
    return {"logits": net(x), **found}


@pytest.mark.parametrize("shape", [(1, 28, 28), CIFAR, (3, 8, 8), (2, 9, 21)])
@pytest.mark.parametrize("width", [1, 2])
def test_shapes_of_stages_and_embedding(shape: tuple[int, int, int], width: int) -> None:
    net = WideResNet(shape, 7, depth=10, width=width)
    found = outputs(net, torch.randn(3, *shape), "layer1", "layer2", "layer3", "relu", "flatten")
    for factor, name in [(1, "layer1"), (2, "layer2"), (4, "layer3")]:
        height, width_of_map = (ceil(size / factor) for size in shape[1:])
        assert found[name].shape == (3, 16 * width * factor, height, width_of_map)
        assert found[name].min() < 0  # a sum, not yet activated
    torch.testing.assert_close(found["relu"], torch.relu(net.bn(found["layer3"])))
    torch.testing.assert_close(found["flatten"], found["relu"].mean((2, 3)))
    torch.testing.assert_close(net.fc(found["flatten"]), found["logits"])
    assert found["logits"].shape == (3, 7)


def test_a_block_activates_before_its_convolutions() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    same, changing = PreActivationBlock(4, 4, stride=1), PreActivationBlock(4, 8, stride=2)
    assert same.shortcut is None
    assert isinstance(changing.shortcut, nn.Conv2d)
    for block in (same.eval(), changing.eval()):
        active = torch.relu(block.bn1(x))
        inner = block.conv2(torch.relu(block.bn2(block.conv1(active))))
        shortcut = x if block.shortcut is None else block.shortcut(active)
        torch.testing.assert_close(block(x), inner + shortcut, rtol=0, atol=0)
    assert changing(x).shape == (2, 8, 3, 3)


def test_dropout_acts_between_the_convolutions_of_every_block() -> None:
    net = WideResNet(CIFAR, 10, depth=16, width=1, dropout=0.3)
    dropouts = [n for n, m in net.named_modules() if isinstance(m, nn.Dropout) and m.p == 0.3]
    assert dropouts == [f"layer{s}.{b}.dropout" for s in (1, 2, 3) for b in (0, 1)]
    block, x = PreActivationBlock(4, 4, stride=1, dropout=0.5), torch.randn(2, 4, 6, 6)
    torch.manual_seed(0)
    found = block(x)
    torch.manual_seed(0)
    first = block.conv1(block.bn1(x).relu())
    dropped = nn.functional.dropout(block.bn2(first).relu(), 0.5, training=True)
    torch.testing.assert_close(found, block.conv2(dropped) + x)
    block.eval()
    first = block.conv1(block.bn1(x).relu())
    torch.testing.assert_close(block(x), block.conv2(block.bn2(first).relu()) + x)


def test_relus_do_not_work_in_place_and_weights_are_initialised_by_fan_out() -> None:
    torch.manual_seed(0)
    net = WideResNet(CIFAR, 10, depth=10, width=4)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            assert not module.inplace
        elif isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert (net.fc.bias == 0).all()


@pytest.mark.parametrize("depth", [4, 8, 18, 39])
def test_a_depth_other_than_6n_plus_4_is_rejected(depth: int) -> None:
    with pytest.raises(UserError, match=rf"depth must be 6n \+ 4 \(10, 16, 22 …\), got {depth}"):
        WideResNet(CIFAR, 10, depth=depth)
