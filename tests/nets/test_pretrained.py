"""Tests of pretrained networks: real weights, their preprocessing, files of weights, and timm."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunsCode
from lite import efficientnet_lite0
from torch import nn
from torchvision.transforms import v2

from kd_lightning.data.batches import Normalizer
from kd_lightning.data.types import ImageSpec
from kd_lightning.nets.preprocessing import Preprocessing, connect, preprocessed
from kd_lightning.nets.timm import timm_net
from kd_lightning.nets.torchvision import torchvision_net
from kd_lightning.utils.errors import UserError

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SPEC = ImageSpec((3, 64, 64), 10, (0.1, 0.5, 0.7), (0.5, 0.2, 0.3))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()


def test_real_weights_answer_as_in_their_own_code(images: torch.Tensor) -> None:
    """Images normalised for other data give the logits of images normalised for the network."""
    net = preprocessed((3, 64, 64), 10, efficientnet_lite0, *IMAGENET, size=96)
    net = connect(net, SPEC).double().eval()
    own = efficientnet_lite0().double().eval()
    resize = v2.Resize([96, 96], antialias=True)
    normalize = v2.Normalize(*IMAGENET)
    with torch.no_grad():
        expected = own(normalize(resize(images.double() / 255)))
        found = net(Normalizer(SPEC)(images.double()))
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def saved(path: Path, net: nn.Module) -> str:
    torch.save(net.state_dict(), path)
    return str(path)


def test_weights_of_a_file_bring_their_normalisation(tmp_path: Path, images: torch.Tensor) -> None:
    source = torchvision_net((3, 64, 64), 1000, "squeezenet1_1").eval()
    path = saved(tmp_path / "w.pth", source)
    net = torchvision_net((3, 64, 64), 1000, "squeezenet1_1", weights=path).eval()
    with torch.no_grad():
        expected = source(v2.Normalize(*IMAGENET)(images.float() / 255))
        found = connect(net, SPEC)(Normalizer(SPEC)(images.float()))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    fewer = torchvision_net((3, 64, 64), 10, "squeezenet1_1", weights=path)
    assert torch.equal(fewer.state_dict()["features.0.weight"], source.features[0].weight)  # pyright: ignore


def test_data_that_do_not_say_how_they_are_normalised_are_left_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", torchvision_net((3, 64, 64), 1000, "squeezenet1_1"))
    net = torchvision_net((3, 64, 64), 1000, "squeezenet1_1", weights=path).eval()
    x = torch.randn(2, 3, 64, 64)
    connect(net, ImageSpec((3, 64, 64), 1000, (), ()))
    own: Any = net.preprocessing
    assert isinstance(own, Preprocessing)
    assert torch.equal(own(net, (x,))[0], x)


def test_size_is_added_to_the_normalisation_of_weights(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", torchvision_net((3, 64, 64), 1000, "squeezenet1_1"))

    def factory(shape: Any, classes: int) -> nn.Module:
        return torchvision_net(shape, classes, "squeezenet1_1", weights=path)

    net = connect(preprocessed((3, 32, 32), 10, factory, size=64), SPEC)
    own: Any = net.preprocessing
    assert (own.mean, own.size) == (IMAGENET[0], 64)
    assert len(net._forward_pre_hooks) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"no weights", "cannot be read as plain weights"),
        ([1, 2], "holds no state dict"),
        ("code", "cannot be read as plain weights"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        trace = tmp_path / "trace"
        torch.save({"a": RunsCode(trace)} if content == "code" else content, path)
    with pytest.raises(UserError, match=message):
        torchvision_net((3, 64, 64), 10, "squeezenet1_1", weights=str(path))
    assert not (tmp_path / "trace").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", nn.Linear(3, 4))
    with pytest.raises(UserError, match="do not fit"):
        torchvision_net((3, 64, 64), 10, "squeezenet1_1", weights=path)


def test_timm_networks(tmp_path: Path, images: torch.Tensor) -> None:
    net = timm_net((3, 64, 64), 7, "resnet10t").eval()
    assert net(images.float()).shape == (2, 7)
    assert timm_net((1, 32, 32), 7, "resnet10t")(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    path = saved(tmp_path / "w.pth", net)
    filled = timm_net((3, 64, 64), 5, "resnet10t", weights=path)
    assert torch.equal(filled.state_dict()["conv1.0.weight"], net.state_dict()["conv1.0.weight"])
    assert isinstance(filled.preprocessing, Preprocessing)
    empty = timm_net((3, 64, 64), 5, "resnet10t", weights=path, load_weights=False)
    assert not torch.equal(empty.state_dict()["conv1.0.weight"], net.state_dict()["conv1.0.weight"])
    assert isinstance(empty.preprocessing, Preprocessing)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet10", None, r"resnet10 is no model of timm; the nearest are .*resnet10t"),
        ("resnet10t", "imagenet", r"use DEFAULT, the path of a file, or null"),
        ("resnet10t", "DEFAULT", r"cannot be created with weights=DEFAULT .*weights=PATH"),
    ],
)
def test_timm_errors(name: str, weights: str | None, message: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        timm_net((3, 64, 64), 5, name, weights=weights)
