"""ResNets: published numbers of parameters, shapes of the stages, blocks written out."""

from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from kd_lightning.nets.resnet import BasicBlock, ResNet
from kd_lightning.utils.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf" / "net"
CIFAR = (3, 32, 32)
PUBLISHED = {
    "resnet8": 83_892,  # "0.08 M"
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
}


def settings(name: str) -> dict[str, Any]:
    """Return the settings in a network's YAML file, without its target."""
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert values.pop("_target_") == "kd_lightning.nets.resnet.ResNet"
    assert values.pop("_partial_") is True
    return values


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def derived(channels: int, classes: int, depth: int, width: int, stem: int) -> int:
    """Count parameters by formula: a convolution has k²·in·out, its batch norm 2·out."""
    total = 9 * channels * stem + 2 * stem
    inputs = stem
    for outputs in (16 * width, 32 * width, 64 * width):
        for block in range((depth - 2) // 6):
            total += 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs
            if block == 0 and (inputs != outputs or outputs > 16 * width):
                total += inputs * outputs + 2 * outputs
            inputs = outputs
    return total + (inputs + 1) * classes


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_parameters_match_the_published_ones(name: str) -> None:
    chosen = settings(name)
    assert parameters(ResNet(CIFAR, 100, **chosen)) == PUBLISHED[name]
    assert derived(3, 100, **chosen) == PUBLISHED[name]


@pytest.mark.parametrize("shape", [(1, 28, 28), CIFAR])
@pytest.mark.parametrize(("depth", "width", "stem"), [(8, 1, 16), (14, 2, 16), (8, 4, 32)])
def test_parameters_follow_depth_width_and_stem(
    shape: tuple[int, int, int], depth: int, width: int, stem: int
) -> None:
    net = ResNet(shape, 7, depth=depth, width=width, stem=stem)
    assert parameters(net) == derived(shape[0], 7, depth, width, stem)


@pytest.mark.parametrize("name", PUBLISHED)
def test_depth_is_the_number_of_layers_with_weights(name: str) -> None:
    net, depth = ResNet(CIFAR, 100, **settings(name)), settings(name)["depth"]
    layers = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([n for n in layers if "downsample" not in n]) == depth


def outputs(net: nn.Module, x: Tensor, *names: str) -> dict[str, Tensor]:
    """Return the outputs of modules by path, and the logits."""
    found: dict[str, Tensor] = {}
    for name in names:
        net.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: found.update({name: output})
        )
    return {"logits": net(x), **found}


@pytest.mark.parametrize("shape", [(1, 28, 28), CIFAR, (3, 8, 8), (2, 9, 21), (3, 64, 48)])
@pytest.mark.parametrize(("width", "stem"), [(1, 16), (4, 32)])
def test_stages_end_with_a_relu_and_flatten_returns_the_embedding(
    shape: tuple[int, int, int], width: int, stem: int
) -> None:
    net = ResNet(shape, 7, depth=8, width=width, stem=stem)
    found = outputs(net, torch.randn(3, *shape), "layer1", "layer2", "layer3", "flatten")
    for factor, name in [(1, "layer1"), (2, "layer2"), (4, "layer3")]:
        height, width_of_map = (ceil(size / factor) for size in shape[1:])
        assert found[name].shape == (3, 16 * width * factor, height, width_of_map)
        assert found[name].min() == 0
    assert found["flatten"].shape == (3, 64 * width)
    torch.testing.assert_close(found["flatten"], found["layer3"].mean((2, 3)))
    torch.testing.assert_close(net.fc(found["flatten"]), found["logits"])
    assert found["logits"].shape == (3, 7)


def test_projections_occur_only_where_shapes_change() -> None:
    net = ResNet(CIFAR, 10, depth=20)
    projected = [
        n
        for n, m in net.named_modules()
        if isinstance(m, BasicBlock) and isinstance(m.downsample, nn.Sequential)
    ]
    assert projected == ["layer2.0", "layer3.0"]
    wide = ResNet(CIFAR, 10, depth=8, width=4, stem=32)
    first = wide.get_submodule("layer1.0.downsample.0")
    assert isinstance(first, nn.Conv2d)
    assert (first.in_channels, first.out_channels, first.stride) == (32, 64, (1, 1))


def test_a_block_adds_its_convolutions_to_its_shortcut() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    block = BasicBlock(4, 4, stride=1).eval()
    inner = torch.relu(block.bn1(block.conv1(x)))
    assert torch.equal(block(x), torch.relu(x + block.bn2(block.conv2(inner))))
    changing = BasicBlock(4, 8, stride=2).eval()
    inner = changing.bn2(changing.conv2(torch.relu(changing.bn1(changing.conv1(x)))))
    assert torch.equal(changing(x), torch.relu(inner + changing.downsample(x)))
    assert inner.shape == (2, 8, 3, 3)


def test_relus_do_not_work_in_place() -> None:
    relus = [m for m in ResNet(CIFAR, 10, depth=20).modules() if isinstance(m, nn.ReLU)]
    assert len(relus) == 19
    assert not any(m.inplace for m in relus)


def test_convolutions_are_initialised_by_their_fan_out() -> None:
    torch.manual_seed(0)
    net = ResNet(CIFAR, 10, depth=8, width=4, stem=32)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
            assert module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_gradient_reaches_every_parameter() -> None:
    net = ResNet((1, 8, 8), 3, depth=8)
    net(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 18, 21, 51])
def test_a_depth_other_than_6n_plus_2_is_rejected(depth: int) -> None:
    with pytest.raises(UserError, match=rf"depth must be 6n \+ 2 \(8, 14, 20 …\), got {depth}"):
        ResNet(CIFAR, 10, depth=depth)
