"""Tests of PT2 archives: what the file answers and contains, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kd_lightning.compress.pt2_file import Pt2File, write_pt2
from kd_lightning.compress.verify import verify
from kd_lightning.data.types import ImageSpec
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.runs.export import export
from kd_lightning.runs.load import load_run
from kd_lightning.utils.errors import UserError

SPEC = ImageSpec((1, 8, 8), 10, (0.3,), (0.4,))


def images_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)


def test_any_batch_size_gives_the_same_answers(tmp_path: Path) -> None:
    net = StudentCNN((1, 8, 8), 10).eval()
    write_pt2(net, SPEC, tmp_path / "a.pt2", {})
    runtime = Pt2File(tmp_path / "a.pt2")
    exact = net.double()((images_of(72).double() / 255 - 0.3) / 0.4).detach()
    for part, expected in zip(
        images_of(72).split([1, 7, 64]), exact.split([1, 7, 64]), strict=True
    ):
        probabilities, logits = runtime(part.numpy())
        assert np.abs(logits - expected.numpy()).max() < 1e-5 * exact.abs().max()
        assert np.abs(probabilities - expected.softmax(1).numpy()).max() < 1e-5


def test_a_different_file_does_not_pass(tmp_path: Path) -> None:
    one, other = (StudentCNN((1, 8, 8), 10).eval() for _ in range(2))
    write_pt2(one, SPEC, tmp_path / "a.pt2", {})
    samples = [(images_of(50), torch.zeros(50))]
    assert verify(Pt2File(tmp_path / "a.pt2"), one, SPEC, samples)["passed"]
    assert not verify(Pt2File(tmp_path / "a.pt2"), other, SPEC, samples)["passed"]


def test_the_file_has_facts_and_no_local_paths(tmp_path: Path) -> None:
    write_pt2(
        StudentCNN((1, 8, 8), 10).eval(), SPEC, tmp_path / "a.pt2", {"class_names": ["ä", "b"]}
    )
    facts = {"class_names": ""}
    torch.export.load(tmp_path / "a.pt2", extra_files=facts)
    assert json.loads(facts["class_names"]) == ["ä", "b"]
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "a.pt2").read_bytes()


def test_threads_of_the_process_stay_as_they_are(tmp_path: Path) -> None:
    write_pt2(StudentCNN((1, 8, 8), 10).eval(), SPEC, tmp_path / "a.pt2", {})
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Pt2File(tmp_path / "a.pt2")(images_of(1).numpy())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class Branching(nn.Module):
    """A layer whose way depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) if x.sum() > 0 else self.head(-x)


class Outer(nn.Module):
    """A network with such a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), Branching())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_a_network_that_cannot_be_exported_is_named_with_its_layer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refusal = r"^Outer \(in layers\.1\) cannot be exported to PT2: .*Eq\(.*$"
    with pytest.raises(UserError, match=refusal):
        write_pt2(Outer().eval(), SPEC, tmp_path / "a.pt2", {})
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "a.pt2").exists()


def test_damaged_files_and_int8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"no program")
    with pytest.raises(UserError, match=r"a.pt2 cannot be loaded: "):
        Pt2File(tmp_path / "a.pt2")
    net = StudentCNN((1, 8, 8), 10).eval()
    with pytest.raises(UserError, match="pt2 computes in float32 only"):
        write_pt2(net, SPEC, tmp_path / "b.pt2", {}, images_of(32))
    assert not (tmp_path / "b.pt2").exists()


@pytest.mark.slow
def test_a_runs_file_is_verified_and_has_no_int8_variant(digits_run: Path, tmp_path: Path) -> None:
    run = load_run(shutil.copytree(digits_run, tmp_path / "run"))
    record = export(run, "pt2")
    assert record["passed"]
    assert record["file"] == "model.pt2"
    assert record["versions"].keys() == {"torch"}
    with pytest.raises(UserError, match="format=pt2 has no int8 variant: use one of onnx, "):
        export(run, "pt2", int8=True)
