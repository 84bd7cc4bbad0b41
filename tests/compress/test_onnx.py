"""Tests of exports: what the file answers, what is recorded, and what is refused."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import recompute
from torch import nn

from kd_lightning.cli.export import main as kd_export
from kd_lightning.compress.onnx_file import OnnxFile, write_onnx
from kd_lightning.compress.verify import verify
from kd_lightning.data.types import ImageSpec
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.nets.preprocessing import Preprocessing, attach, connect
from kd_lightning.nets.torchvision import torchvision_net
from kd_lightning.runs.load import load_run
from kd_lightning.utils.errors import UserError

SPEC = ImageSpec((1, 8, 8), 10, (0.3,), (0.4,))
PLAIN = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
images = np.load(sys.argv[2])
probabilities, logits = session.run(None, {"images": images})
facts = session.get_modelmeta().custom_metadata_map
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "lightning"})
print(json.dumps([probabilities.argmax(1).tolist(), json.loads(facts["class_names"]), heavy]))
"""


def images_of(count: int, shape: tuple[int, ...] = (1, 8, 8)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


@pytest.mark.slow
def test_file_answers_as_its_checkpoint_on_all_test_images(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a program without torch, against logits recomputed in float64."""
    path = shutil.copytree(digits_run, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["kd-export", str(path)])
    kd_export()
    file = path / "exported" / "model.onnx"
    record = json.loads((path / "exported" / "export.json").read_text())["model.onnx"]
    logits, target = recompute(digits_run, "test")
    accuracy = float((logits.argmax(1) == target).double().mean())
    assert record["passed"]
    assert record["accuracy"] == pytest.approx(accuracy)
    assert record["images"] == len(target)
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()

    run = load_run(digits_run)
    images = images_of(65, run.spec.input_shape)
    np.save(tmp_path / "images.npy", images.numpy())
    words = [sys.executable, "-c", PLAIN, str(file), str(tmp_path / "images.npy")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    answers, names, heavy = json.loads(done.stdout)
    assert answers == run.predict(images).argmax(1).tolist()
    assert names == list(run.spec.class_names)
    assert heavy == []


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_any_batch_size_gives_the_same_answers(tmp_path: Path, batch: int) -> None:
    net = StudentCNN((1, 8, 8), 10).eval()
    write_onnx(net, SPEC, tmp_path / "a.onnx", {})
    images = images_of(batch)
    probabilities, logits = OnnxFile(tmp_path / "a.onnx")(images.numpy())
    exact = net.double()((images.double() / 255 - 0.3) / 0.4).detach()
    assert np.abs(logits - exact.numpy()).max() < 1e-5 * exact.abs().max()
    assert np.abs(probabilities - exact.softmax(1).numpy()).max() < 1e-5


def test_a_networks_own_preprocessing_is_in_the_file(tmp_path: Path) -> None:
    net = torchvision_net((3, 32, 32), 5, name="resnet18").eval()
    attach(net, Preprocessing((0.4, 0.5, 0.6), (0.2, 0.2, 0.3), size=48))
    spec = ImageSpec((3, 32, 32), 5, (0.5,) * 3, (0.25,) * 3)
    connect(net, spec)
    write_onnx(net, spec, tmp_path / "a.onnx", {})
    images = images_of(8, (3, 32, 32))
    found = verify(OnnxFile(tmp_path / "a.onnx"), net, spec, [(images, torch.zeros(8))])
    assert found["passed"], found


def test_a_different_file_does_not_pass(tmp_path: Path) -> None:
    one, other = (StudentCNN((1, 8, 8), 10).eval() for _ in range(2))
    write_onnx(one, SPEC, tmp_path / "a.onnx", {})
    found = verify(OnnxFile(tmp_path / "a.onnx"), other, SPEC, [(images_of(50), torch.zeros(50))])
    assert not found["passed"]
    assert found["largest_difference"] > 1e-3
    assert found["images"] == 50


def test_a_small_difference_of_all_logits_does_not_pass() -> None:
    """The answers agree, but the numbers are further apart than rounding explains."""
    net = StudentCNN((1, 8, 8), 10).eval()

    def runtime(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits = net((torch.from_numpy(images).float() / 255 - 0.3) / 0.4).numpy()
        return logits, logits + 1e-3 * np.abs(logits).max()

    found = verify(runtime, net, SPEC, [(images_of(20), torch.zeros(20))])
    assert found["agreement"] == 1
    assert not found["passed"]


def test_answers_that_are_no_numbers_do_not_pass() -> None:
    """Not even if the network gives none either."""
    net = StudentCNN((1, 8, 8), 10).eval()
    nn.init.constant_(net.classifier[-1].weight, torch.nan)

    def runtime(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answers = np.full((len(images), 10), np.nan, np.float32)
        return answers, answers

    for int8 in (False, True):
        found = verify(runtime, net, SPEC, [(images_of(20), torch.zeros(20))], int8=int8)
        assert not found["passed"]


def test_the_file_has_facts_and_nothing_of_the_exporter(tmp_path: Path) -> None:
    net = StudentCNN((1, 8, 8), 10).eval()
    write_onnx(net, SPEC, tmp_path / "a.onnx", {"class_names": ["ä", "b"]})
    model = onnx.load(tmp_path / "a.onnx")
    assert {p.key: json.loads(p.value) for p in model.metadata_props} == {"class_names": ["ä", "b"]}
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "a.onnx").read_bytes()
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    assert [value.shape for value in session.get_outputs()] == [["batch", 10]] * 2


class Branching(nn.Module):
    """A network whose way depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1)) if x.sum() > 0 else self.head(-x.flatten(1))


def test_a_network_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Branching cannot be exported to ONNX: "):
        write_onnx(Branching().eval(), SPEC, tmp_path / "a.onnx", {})
    assert not (tmp_path / "a.onnx").exists()


class Eigenvalues(nn.Module):
    """A layer with an operator that ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x[:, 0]).real


def test_an_operator_that_onnx_lacks_is_named_with_its_layer(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Identity(), Eigenvalues(), nn.Linear(8, 10)).eval()
    message = (
        r"Sequential \(in 1\) cannot be exported to ONNX: No ONNX function .*linalg_eig[^\n]*$"
    )
    with pytest.raises(UserError, match=message):
        write_onnx(net, SPEC, tmp_path / "a.onnx", {})


def test_damaged_files_and_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"a.onnx cannot be loaded: "):
        OnnxFile(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'kd-lightning\[onnx\]'"):
        write_onnx(nn.Identity(), SPEC, tmp_path / "b.onnx", {})


@pytest.mark.slow
def test_unfinished_runs_are_refused(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (".hydra/config.yaml", ".hydra/hydra.yaml", "checkpoints/best.ckpt", "run.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((digits_run / name).read_bytes())
    monkeypatch.setattr(sys, "argv", ["kd-export", str(tmp_path)])
    with pytest.raises(SystemExit, match="is not finished: resume="):
        kd_export()
    assert not (tmp_path / "exported").exists()


@pytest.mark.slow
def test_each_file_of_a_run_has_a_record(digits_run: Path, tmp_path: Path) -> None:
    """In Python, to a folder of one's own, in floating point and in int8."""
    run = load_run(digits_run)
    names = ("a.onnx", "b.onnx", "c.pt2")
    for name, quantize in zip(names, (None, "int8", "none"), strict=True):
        record = run.export(tmp_path / name, quantize=quantize)
        assert record["passed"], record
    records = json.loads((tmp_path / "export.json").read_text())
    assert tuple(records) == names
    assert [records[name]["int8"] for name in names] == [False, True, False]
    assert records["b.onnx"]["int8_share"] == 1.0
    assert records["b.onnx"]["bytes"] < 0.35 * records["a.onnx"]["bytes"]
    assert records["b.onnx"]["accuracy"] >= records["a.onnx"]["accuracy"] - 0.01
    for name, message in (
        ("a.tflite", r"should end in one of \.onnx"),
        ("c.pt2", "no int8 variant"),
    ):
        with pytest.raises(UserError, match=message):
            run.export(tmp_path / name, quantize="int8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("onnx",), "onnx is no setting: kd-export takes one run"),
        (("format=tflite",), "format=tflite is none of onnx, pt2, executorch"),
        (("bits=4",), "kd-export has only format= and quantize="),
        (("format=onnx,pt2", "quantize=int8"), "format=pt2 has no int8 variant"),
    ],
)
def test_wrong_words_end_with_one_line_before_a_file_is_written(
    digits_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    path = shutil.copytree(digits_run, tmp_path / "sweep" / "0")
    monkeypatch.setattr(sys, "argv", ["kd-export", str(path), *words])
    with pytest.raises(SystemExit, match=message):
        kd_export()
    assert not (path / "exported").exists()
    monkeypatch.setattr(sys, "argv", ["kd-export", str(tmp_path / "sweep")])
    with pytest.raises(SystemExit, match=r"is a sweep: name one of its jobs, such as .*/0"):
        kd_export()
