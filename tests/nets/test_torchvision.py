"""Networks of torchvision: names, input sizes, and weights from a local cache."""

from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch
from conftest import RunsCode
from torch import nn
from torchvision import models

from kd_lightning.nets.torchvision import torchvision_net
from kd_lightning.runs.trust import is_network
from kd_lightning.utils.errors import UserError

CIFAR = (3, 32, 32)
SMALL = "shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return torch's cache of weights, empty, and block downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def file_of(name: str, folder: Path) -> Path:
    """Return the cache's file for the default weights of a network."""
    weights: Any = models.get_model_weights(name)
    return folder / Path(urlparse(weights.DEFAULT.url).path).name


def keep(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Write random weights into the cache, as a download would."""
    torch.manual_seed(1)
    state = models.get_model(name).state_dict()
    torch.save(state, file_of(name, folder))
    return state


def rejection(*arguments: Any, **settings: Any) -> str:
    """Return the one-line error message."""
    with pytest.raises(UserError) as caught:
        torchvision_net(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", CIFAR),
        ("mobilenet_v3_small", (3, 40, 24)),
        ("vit_b_32", (3, 64, 64)),  # takes the image size as an argument
        ("googlenet", CIFAR),  # has auxiliary heads by default
    ],
)
def test_output_has_one_logit_per_class(name: str, shape: tuple[int, int, int]) -> None:
    net = torchvision_net(shape, 7, name=name)
    assert net.training
    assert net(torch.randn(2, *shape)).shape == (2, 7)


def test_modules_and_initial_weights_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    ours = torchvision_net(CIFAR, 10, name="resnet18")
    torch.manual_seed(0)
    theirs = models.resnet18(num_classes=10)
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    state = theirs.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in ours.state_dict().items())


def test_a_run_directory_may_name_the_factory() -> None:
    assert is_network("kd_lightning.nets.torchvision.torchvision_net")
    assert not is_network("kd_lightning.nets.torchvision.get_close_matches")


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnt18", "resnet18"), ("efficientnet", "efficientnet_b"), ("", ""), (18, "")],
)
def test_an_unknown_name_is_rejected_with_similar_names(name: Any, near: str) -> None:
    message = rejection(CIFAR, 10, name=name)
    assert message.startswith(
        f"{name} is not a supported classifier of torchvision; the nearest are {near}"
    )


@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "raft_small", "r3d_18", "mnasnet0_5"])
def test_other_models_than_image_classifiers_are_rejected(name: str) -> None:
    assert "is not a supported classifier" in rejection(CIFAR, 10, name=name)


@pytest.mark.parametrize("shape", [(1, 28, 28), (4, 32, 32), (3, 32), (17,)])
def test_inputs_without_three_channels_are_rejected(shape: tuple[int, ...]) -> None:
    message = rejection(shape, 10)
    assert f"the inputs are {'×'.join(map(str, shape))}; use a network for any number" in message
    assert "resnet20" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("inception_v3", CIFAR),
        ("maxvit_t", CIFAR),
        ("vit_b_16", (3, 30, 30)),
        ("alexnet", (3, 40, 40)),
    ],
)
def test_an_unsuitable_image_size_is_rejected(name: str, shape: tuple[int, int, int]) -> None:
    size = "×".join(map(str, shape))
    assert rejection(shape, 10, name=name).startswith(f"{name} cannot take images of {size} (")


def is_in(state: dict[str, torch.Tensor], net: nn.Module) -> dict[str, bool]:
    return {
        k: v.shape == state[k].shape and torch.equal(v, state[k])
        for k, v in net.state_dict().items()
    }


@pytest.mark.parametrize("name", [SMALL, "squeezenet1_1", "mobilenet_v3_small"])
def test_the_last_layer_is_initialised_anew_for_other_classes(name: str, kept: Path) -> None:
    state = keep(name, kept)
    found = is_in(state, torchvision_net(CIFAR, 10, name=name, weights="DEFAULT"))
    head = {SMALL: "fc", "squeezenet1_1": "classifier.1", "mobilenet_v3_small": "classifier.3"}
    assert {k for k, same in found.items() if not same} == {
        f"{head[name]}.weight",
        f"{head[name]}.bias",
    }


def test_the_last_layer_is_loaded_for_1000_classes(kept: Path) -> None:
    state = keep(SMALL, kept)
    for weights in ("DEFAULT", "IMAGENET1K_V1"):
        net = torchvision_net(CIFAR, 1000, name=SMALL, weights=weights)
        assert all(is_in(state, net).values())


def test_weights_with_old_parameter_names_are_loaded(kept: Path) -> None:
    state = models.densenet121().state_dict()
    old = {
        k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v for k, v in state.items()
    }
    old = {k: v for k, v in old.items() if "num_batches_tracked" not in k}
    assert set(old) - set(state)
    torch.save(old, file_of("densenet121", kept))
    net = torchvision_net(CIFAR, 10, name="densenet121", weights="DEFAULT")
    different = {k for k, same in is_in(state, net).items() if not same}
    assert different == {"classifier.weight", "classifier.bias"}


def test_weights_for_another_image_size_are_rejected(kept: Path) -> None:
    torch.save({"conv_proj.bias": torch.zeros(768)}, file_of("vit_b_32", kept))
    message = rejection((3, 32, 32), 10, name="vit_b_32", weights="DEFAULT")
    assert "the weights DEFAULT of vit_b_32 do not fit images of this size" in message


def test_a_network_for_a_checkpoint_needs_no_weights() -> None:
    made = partial(torchvision_net, name=SMALL, weights="DEFAULT")
    with pytest.raises(UserError, match="could not be downloaded"):
        made(CIFAR, 10)
    assert made(CIFAR, 10, weights=None)(torch.randn(2, *CIFAR)).shape == (2, 10)


@pytest.mark.parametrize("weights", ["IMAGENET22K", "default", True])
def test_unknown_weights_are_rejected_with_the_known_names(weights: Any) -> None:
    message = rejection(CIFAR, 10, name="resnet50", weights=weights)
    assert message.startswith(
        f"torchvision has no weights {weights} for resnet50; choose one of IMAGENET1K_V1"
    )
    assert "IMAGENET1K_V2" in message


def test_a_failed_download_names_the_file_and_its_place(kept: Path) -> None:
    message = rejection(CIFAR, 10, name=SMALL, weights="DEFAULT")
    assert f"the weights DEFAULT of {SMALL} could not be downloaded or read (" in message
    assert file_of(SMALL, kept).name in message
    assert f"into {kept}, or use weights=null" in message


@pytest.mark.parametrize("length", [0, 100, 100_000])
def test_truncated_weights_are_rejected(kept: Path, length: int) -> None:
    keep(SMALL, kept)
    file = file_of(SMALL, kept)
    file.write_bytes(file.read_bytes()[:length])
    assert "could not be downloaded or read" in rejection(CIFAR, 10, name=SMALL, weights="DEFAULT")


def test_a_pickle_in_place_of_weights_runs_no_code(kept: Path, tmp_path: Path) -> None:
    torch.save({"fc.weight": RunsCode(tmp_path / "trace")}, file_of(SMALL, kept))
    assert "could not be downloaded or read" in rejection(CIFAR, 10, name=SMALL, weights="DEFAULT")
    assert not (tmp_path / "trace").exists()
