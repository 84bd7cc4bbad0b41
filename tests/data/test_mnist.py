"""Tests of MNIST and Fashion-MNIST: the real files, damaged files, and failed downloads."""

import gzip
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torchvision.datasets import MNIST

from kd_lightning.data.mnist import FashionMNISTDataModule, MNISTDataModule
from kd_lightning.utils.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf" / "data"
MODULES = {"mnist": MNISTDataModule, "fashion_mnist": FashionMNISTDataModule}
CLASSES = {  # training samples per class
    "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "fashion_mnist": [6000] * 10,
}


@pytest.fixture(scope="module", params=MODULES)
def real(request: pytest.FixtureRequest, data_dir: Path) -> tuple[str, MNISTDataModule]:
    """A real data set with the settings of its YAML."""
    name = request.param
    if not (data_dir / MODULES[name].source.__name__).is_dir():
        pytest.skip(f"{name} is not in {data_dir}")
    settings = yaml.safe_load((CONF / "mnist.yaml").read_text())
    settings |= yaml.safe_load((CONF / f"{name}.yaml").read_text())
    chosen = {k: settings[k] for k in ("val_size", "mean", "std")}
    data = MODULES[name](root=str(data_dir), **chosen)
    data.prepare_data()
    data.setup()
    return name, data


def test_splits_have_the_published_sizes(real: tuple[str, MNISTDataModule]) -> None:
    _, data = real
    sizes = {name: tuple(split.inputs.shape) for name, split in data.splits.items()}
    assert sizes == {
        "train": (55_000, 1, 28, 28),
        "val": (5_000, 1, 28, 28),
        "test": (10_000, 1, 28, 28),
    }
    assert all(split.inputs.dtype == torch.uint8 for split in data.splits.values())
    assert data.spec.num_classes == 10


def test_splits_contain_every_official_sample(real: tuple[str, MNISTDataModule]) -> None:
    name, data = real
    train, val = data.splits["train"], data.splits["val"]
    counts = torch.bincount(torch.cat([train.target, val.target]))
    assert counts.tolist() == CLASSES[name]
    raw = data.root / data.source.__name__ / "raw"
    images = (raw / "train-images-idx3-ubyte").read_bytes()[16:]
    official = np.frombuffer(images, np.uint8).reshape(60_000, -1)
    ours = torch.cat([train.inputs, val.inputs]).flatten(1).numpy()
    assert sorted(map(hash, map(bytes, ours))) == sorted(map(hash, map(bytes, official)))
    labels = (raw / "t10k-labels-idx1-ubyte").read_bytes()[8:]
    assert bytes(data.splits["test"].target.byte().tolist()) == labels


def test_configured_mean_and_std_match_the_data(
    real: tuple[str, MNISTDataModule],
) -> None:
    _, data = real
    pixels = torch.cat([data.splits[s].inputs for s in ("train", "val")]).double() / 255
    assert data.spec.mean == pytest.approx([pixels.mean().item()], abs=5e-5)
    assert data.spec.std == pytest.approx([pixels.std().item()], abs=5e-5)


def test_validation_split_is_the_same_for_all_seeds(data_dir: Path) -> None:
    fingerprints = set()
    for seed in (0, 1):
        data = MNISTDataModule(root=str(data_dir), val_size=5000, seed=seed)
        data.setup()
        fingerprints.add(data.fingerprint)
    assert len(fingerprints) == 1


# generated idx files with a few samples


def idx(values: np.ndarray) -> bytes:
    """Encode values as idx: 0, 0, type, number of dimensions; sizes; bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder of small, valid idx files."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, samples in [("train", 30), ("t10k", 10)]:
        images = random.integers(0, 256, (samples, 8, 9))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(samples) % 3))
    return folder


def loaded(root: Path) -> MNISTDataModule:
    data = MNISTDataModule(root=str(root), val_size=6)
    data.prepare_data()
    data.setup()
    return data


def refused(root: Path) -> str:
    """Return the error message, which must be one line."""
    with pytest.raises(UserError) as caught:
        loaded(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])


@pytest.mark.usefixtures("no_network")
def test_files_of_any_size_are_read(raw: Path) -> None:
    data = loaded(raw.parents[1])
    assert [len(data.splits[s].target) for s in ("train", "val", "test")] == [24, 6, 10]
    assert data.spec.input_shape == (1, 8, 9)
    assert data.splits["test"].target.tolist() == [i % 3 for i in range(10)]


def test_fingerprint_depends_on_content_not_on_the_folder(raw: Path, tmp_path: Path) -> None:
    before = loaded(raw.parents[1]).fingerprint
    shutil.copytree(raw, tmp_path / "copy" / "MNIST" / "raw")
    assert loaded(tmp_path / "copy").fingerprint == before
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x00")
    assert loaded(raw.parents[1]).fingerprint != before


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("length", [0, 3, 10, -1])
def test_truncated_file_is_refused(raw: Path, file: str, length: int) -> None:
    (raw / file).write_bytes((raw / file).read_bytes()[:length])
    message = refused(raw.parents[1])
    assert "are damaged or of another kind" in message
    assert str(raw) in message
    assert "data.root=" in message


@pytest.mark.parametrize(
    "content", [b"hello, world", b"\x89PNG\r\n\x1a\n" + bytes(40), bytes(200), b"\x1f\x8b" * 30]
)
def test_file_of_another_format_is_refused(raw: Path, content: bytes) -> None:
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    assert str(raw) in refused(raw.parents[1])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train-labels-idx1-ubyte", idx(np.zeros(29))),  # one label too few
        ("t10k-labels-idx1-ubyte", idx(np.zeros(11))),  # one too many
        ("train-images-idx3-ubyte", idx(np.zeros(30))),  # labels for images
        ("train-labels-idx1-ubyte", idx(np.zeros((30, 8, 9)))),  # images for labels
        ("t10k-images-idx3-ubyte", idx(np.zeros((10, 9, 9)))),  # of another size than trained on
        ("t10k-labels-idx1-ubyte", idx(np.full(10, 3))),  # of a class never trained on
    ],
)
def test_files_that_do_not_match_are_refused(raw: Path, file: str, content: bytes) -> None:
    (raw / file).write_bytes(content)
    assert str(raw) in refused(raw.parents[1])


@pytest.mark.usefixtures("no_network")
def test_compressed_files_are_unpacked_without_network(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = []
    for file in sorted(raw.iterdir()):
        packed = gzip.compress(file.read_bytes())
        file.with_suffix(".gz").write_bytes(packed)
        file.unlink()
        resources.append((f"{file.name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    assert len(loaded(raw.parents[1]).splits["test"].target) == 10


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("there", [False, True])
def test_failed_download_names_both_remedies(raw: Path, there: bool) -> None:
    (raw / "t10k-images-idx3-ubyte").unlink()
    root = raw.parents[1] if there else raw / "elsewhere"
    message = refused(root)
    assert f"MNIST is not in {root}" in message
    assert "data=digits" in message
    assert "data.root=" in message


@pytest.mark.usefixtures("no_network")
def test_root_that_cannot_be_created_names_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "data=digits" in refused(tmp_path / "file" / "data")
