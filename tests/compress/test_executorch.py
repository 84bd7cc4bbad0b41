"""Tests of ExecuTorch files, where the extra is installed: answers, int8, facts, and refusals."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kd_lightning.compress.executorch_file import ExecutorchFile, write_executorch
from kd_lightning.compress.verify import verify
from kd_lightning.data.types import ImageSpec
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.runs.export import export
from kd_lightning.runs.load import load_run
from kd_lightning.utils.errors import UserError

SPEC = ImageSpec((1, 8, 8), 10, (0.3,), (0.4,))
installed = pytest.mark.skipif(
    find_spec("executorch") is None,
    reason="ExecuTorch is not installed: pip install 'kd-lightning[executorch]'",
)


def images_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)


@installed
def test_the_file_answers_as_its_network_and_says_what_it_is(tmp_path: Path) -> None:
    net = StudentCNN((1, 8, 8), 10).eval()
    write_executorch(net, SPEC, tmp_path / "a.pte", {"class_names": ["ä", "b"]})
    runtime = ExecutorchFile(tmp_path / "a.pte")
    exact = net.double()((images_of(20).double() / 255 - 0.3) / 0.4).detach()
    for image, expected in zip(images_of(20).split(1), exact.split(1), strict=True):
        probabilities, logits = runtime(image.numpy())
        assert np.abs(logits - expected.numpy()).max() < 1e-5 * exact.abs().max()
        assert np.abs(probabilities - expected.softmax(1).numpy()).max() < 1e-5
    names = runtime.program.load_method("class_names")
    assert names is not None
    assert json.loads(names.execute(())[0]) == ["ä", "b"]
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "a.pte").read_bytes()
    # It is not in int8, and verification knows.
    assert runtime.int8_share == 0
    samples = [(images_of(20), torch.zeros(20))]
    assert not verify(runtime, net.float(), SPEC, samples, int8=True, batches=(1,))["passed"]


class Normalised(nn.Module):
    """A convolution with batch normalisation, and what XNNPACK has no operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).logsumexp((2, 3)))


@installed
def test_int8_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    net = Normalised().train()
    net(torch.randn(64, 1, 8, 8))  # statistics
    before = {name: value.clone() for name, value in net.eval().state_dict().items()}
    write_executorch(net, SPEC, tmp_path / "a.pte", {}, images_of(32))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    runtime = ExecutorchFile(tmp_path / "a.pte")
    assert runtime.int8_share == 1
    samples = [(images_of(20), torch.zeros(20))]
    found = verify(runtime, net, SPEC, samples, int8=True, batches=(1,))
    assert 0 < found["largest_difference"] < 0.05 * found["largest_logit"]


@installed
def test_batch_normalisation_alone_is_no_operator_with_weights(tmp_path: Path) -> None:
    """XNNPACK has it as a convolution in float32, whatever the rest computes in."""
    net = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    spec = ImageSpec((4, 2, 2), 16, (0.3,) * 4, (0.4,) * 4)
    net(torch.randn(64, 4, 2, 2))  # statistics
    write_executorch(net.eval(), spec, tmp_path / "a.pte", {})
    runtime = ExecutorchFile(tmp_path / "a.pte")
    assert runtime.int8_share == 1
    image = torch.full((1, 4, 2, 2), 99, dtype=torch.uint8)
    assert verify(runtime, net, spec, [(image, torch.zeros(1))], batches=(1,))["passed"]


@installed
@pytest.mark.slow
def test_a_runs_int8_file_is_as_accurate(digits_run: Path, tmp_path: Path) -> None:
    run = load_run(shutil.copytree(digits_run, tmp_path / "run"))
    one, small = export(run, "executorch"), export(run, "executorch", int8=True)
    assert (one["file"], small["file"]) == ("model.pte", "model_int8.pte")
    assert one["passed"]
    assert one["agreement"] == 1
    assert small["passed"]
    assert small["int8_share"] == 1
    assert small["largest_difference"] > one["largest_difference"]
    assert small["versions"].keys() == {"torch", "executorch", "torchao"}


class Unknown(nn.Module):
    """A network with an operator that ExecuTorch cannot run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x.flatten(2)).repeat(1, 10)


@installed
def test_damaged_files_and_unknown_operators_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^Unknown cannot be exported to ExecuTorch: .*svd.*$"):
        write_executorch(Unknown().eval(), SPEC, tmp_path / "a.pte", {})
    assert not (tmp_path / "a.pte").exists()
    (tmp_path / "a.pte").write_bytes(b"no program")
    with pytest.raises(UserError, match=r"a.pte cannot be loaded: "):
        ExecutorchFile(tmp_path / "a.pte")


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(UserError, match=r"pip install 'kd-lightning\[executorch\]'"):
        write_executorch(nn.Identity(), SPEC, tmp_path / "a.pte", {})
    with pytest.raises(UserError, match=r"pip install 'kd-lightning\[executorch\]'"):
        ExecutorchFile(tmp_path / "a.pte")
