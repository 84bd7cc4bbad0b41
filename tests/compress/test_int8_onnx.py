"""Tests of int8 files: their integers, what really computes in int8, and what they answer."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from kd_lightning.compress.deployed import Deployed
from kd_lightning.compress.fake_quantize import calibrate, fake_quantize, quantized_layers
from kd_lightning.compress.int8_onnx import int8_share
from kd_lightning.compress.onnx_file import OnnxFile, write_onnx
from kd_lightning.data.types import ImageSpec
from kd_lightning.nets.cnn import TeacherCNN
from kd_lightning.nets.resnet import ResNet

SPEC = ImageSpec((3, 16, 16), 5, (0.3, 0.4, 0.5), (0.2, 0.3, 0.4))


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A ResNet whose batch normalisation scales channels, some of them by negative numbers."""
    torch.manual_seed(0)
    made = ResNet((3, 16, 16), 5, depth=8)
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, -1.5, 1.5)
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    fake_quantize(made.eval())
    calibrate(Deployed(made, SPEC).eval(), images(200))
    return made


@pytest.fixture(scope="module")
def file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    write_onnx(net, SPEC, path, {"class_names": []}, images(200))
    return path


def test_integers_in_the_file_are_those_of_training(net: nn.Module, file: Path) -> None:
    """Batch normalisation is folded into the weights: it may turn the sign of a channel."""
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
    compared = 0
    for name, layer in quantized_layers(net):
        original = layer.parametrizations.weight.original.detach().double().flatten(1)
        codes = (original / original.abs().amax(1, keepdim=True) * 127).round().numpy()
        found = stored[f"network.{name}.weight_quantized"].reshape(codes.shape)
        assert found.dtype == np.int8
        sign = np.sign((found.astype(float) * codes).sum(1, keepdims=True))
        assert np.array_equal(found * sign, codes), name
        compared += 1
    assert compared == len([m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)])


def test_all_weighted_operators_compute_in_int8(file: Path) -> None:
    assert OnnxFile(file).int8_share == 1.0


def test_a_file_in_floating_point_is_not_called_int8(tmp_path: Path) -> None:
    write_onnx(TeacherCNN((3, 16, 16), 5).eval(), SPEC, tmp_path / "a.onnx", {})
    assert OnnxFile(tmp_path / "a.onnx").int8_share == 0.0


def test_the_file_answers_as_the_fake_quantised_network(net: nn.Module, file: Path) -> None:
    test = images(256, seed=1)
    with torch.inference_mode():
        expected = Deployed(net, SPEC)(test)[1].numpy()
    logits = OnnxFile(file)(test.numpy())[1]
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.95
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
    assert len(np.unique(logits)) > 256  # the logits themselves are not rounded to 8 bits


def test_steps_of_activations_are_those_of_training(tmp_path: Path) -> None:
    """Not those of the images at hand, here a hundredth of the range."""
    torch.manual_seed(0)
    net = fake_quantize(TeacherCNN((3, 16, 16), 5).eval())
    calibrate(Deployed(net, SPEC).eval(), images(64))
    write_onnx(net, SPEC, tmp_path / "a.onnx", {}, images(64) // 100)
    stored = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "a.onnx").graph.initializer
    }
    scales = [float(v) for k, v in stored.items() if k.endswith("_scale") and v.size == 1]
    for _, layer in quantized_layers(net):
        expected = float(layer.input_quantizer.steps()[0])
        assert min(abs(scale / expected - 1) for scale in scales) < 1e-6


def test_a_network_that_was_not_quantised_is_calibrated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = TeacherCNN((3, 16, 16), 5).eval()
    write_onnx(net, SPEC, tmp_path / "a.onnx", {}, images(200))
    write_onnx(net, SPEC, tmp_path / "b.onnx", {})
    found, exact = (OnnxFile(tmp_path / f"{name}.onnx") for name in "ab")
    assert found.int8_share == 1.0
    test = images(200, seed=1).numpy()
    (_, logits), (_, expected) = found(test), exact(test)
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
    assert (tmp_path / "a.onnx").stat().st_size < 0.3 * (tmp_path / "b.onnx").stat().st_size


def test_the_share_counts_operators_with_weights_alone() -> None:
    """Products of activations, as in attention, are none; those left in floating point count."""
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2, 2], [0.0] * 4)
    nodes = [
        onnx.helper.make_node("QGemm", ["x", "s", "z", "w"], ["a"], domain="com.microsoft"),
        onnx.helper.make_node("FusedMatMul", ["a", "w"], ["b"], domain="com.microsoft"),
        onnx.helper.make_node("MatMul", ["a", "b"], ["c"]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [], [], [weight])
    assert int8_share(onnx.helper.make_model(graph)) == 0.5


class Twice(nn.Module):
    """A network that uses one layer in two places, of which one is after a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(768, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.first(x.flatten(1)))
        return self.last(self.again(x.relu()).relu())


def differences(net: nn.Module, path: Path) -> tuple[float, float]:
    """The largest difference between file and fake-quantised network, and the largest logit."""
    fake_quantize(net.eval())
    calibrate(Deployed(net, SPEC).eval(), images(200))
    write_onnx(net, SPEC, path, {}, images(200))
    test = images(100, seed=1)
    with torch.inference_mode():
        expected = Deployed(net, SPEC)(test)[1].numpy()
    return float(np.abs(OnnxFile(path)(test.numpy())[1] - expected).max()), float(expected.max())


def test_a_layer_that_is_used_twice_is_rounded_in_both_places(tmp_path: Path) -> None:
    torch.manual_seed(0)
    difference, scale = differences(Twice(), tmp_path / "a.onnx")
    assert difference < 0.05 * scale


def test_a_relu_after_the_last_layer_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 5), nn.ReLU())
    difference, scale = differences(net, tmp_path / "a.onnx")
    assert difference < 0.05 * scale
    assert OnnxFile(tmp_path / "a.onnx")(images(50, seed=2).numpy())[1].min() >= 0


def test_operators_that_stay_in_floating_point_count(tmp_path: Path) -> None:
    """Of a transposed convolution, ONNX Runtime converts the integers back to numbers first."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    ).eval()
    write_onnx(net, SPEC, tmp_path / "a.onnx", {}, images(64))
    assert OnnxFile(tmp_path / "a.onnx").int8_share == pytest.approx(2 / 3)
