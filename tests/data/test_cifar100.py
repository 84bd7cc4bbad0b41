"""Tests of CIFAR-100: real sheets, generated sheets, torchvision's files, the experiment."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command
from hydra import compose, initialize_config_dir
from PIL import Image
from torchvision.datasets import CIFAR100

from kd_lightning.data.cifar100 import CIFAR100DataModule
from kd_lightning.utils.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
SETTINGS = yaml.safe_load((CONF / "data" / "cifar100.yaml").read_text())
CHOSEN = {k: SETTINGS[k] for k in ("val_size", "mean", "std")}


# the real sheets


@pytest.fixture(scope="module")
def real(data_dir: Path) -> CIFAR100DataModule:
    """The real data set with the settings of its YAML."""
    if not (data_dir / "cifar100").is_dir():
        pytest.skip(f"cifar100 is not in {data_dir}")
    data = CIFAR100DataModule(root=str(data_dir), **CHOSEN)
    data.prepare_data()
    data.setup()
    return data


def test_splits_have_the_published_sizes(real: CIFAR100DataModule) -> None:
    sizes = {name: tuple(split.inputs.shape) for name, split in real.splits.items()}
    assert sizes == {
        "train": (45_000, 3, 32, 32),
        "val": (5_000, 3, 32, 32),
        "test": (10_000, 3, 32, 32),
    }
    assert all(s.inputs.dtype == torch.uint8 for s in real.splits.values())
    assert all(s.target.dtype == torch.int64 for s in real.splits.values())
    assert real.spec[:2] == ((3, 32, 32), 100)


def test_every_class_has_the_same_number_of_samples(real: CIFAR100DataModule) -> None:
    train, val, test = (real.splits[s].target for s in ("train", "val", "test"))
    assert torch.bincount(torch.cat([train, val])).tolist() == [500] * 100
    assert torch.bincount(test).tolist() == [100] * 100


def test_images_are_in_the_official_order(real: CIFAR100DataModule, data_dir: Path) -> None:
    names = (data_dir / "cifar100" / "fine-names.txt").read_text().split()
    test = real.splits["test"]
    assert [names[label] for label in test.target[:3]] == ["mountain", "forest", "seal"]
    image = Image.open(data_dir / "cifar100" / "test-03.webp")
    for row, column in [(0, 0), (0, 49), (7, 31), (49, 0)]:  # cut out one by one
        box = (32 * column, 32 * row, 32 * column + 32, 32 * row + 32)
        pixels = np.asarray(image.crop(box)).transpose(2, 0, 1)
        ours = test.inputs[7500 + 50 * row + column].numpy()
        np.testing.assert_array_equal(ours, pixels)


def test_configured_mean_and_std_match_the_data(real: CIFAR100DataModule) -> None:
    pixels = torch.cat([real.splits[s].inputs for s in ("train", "val")]).numpy()
    for channel in range(3):
        shares = np.bincount(pixels[:, channel].ravel(), minlength=256) / pixels[:, channel].size
        mean = shares @ np.arange(256)
        std = (shares @ (np.arange(256) - mean) ** 2) ** 0.5
        assert real.spec.mean[channel] == pytest.approx(mean / 255, abs=3e-4)
        assert real.spec.std[channel] == pytest.approx(std / 255, abs=3e-4)


# generated sheets, one for each part


def made_images() -> np.ndarray:
    """2,500 images of 32×32×3 whose channels encode the number, the column and the row."""
    number, y, x = np.ogrid[:2500, :32, :32]
    planes = [number % 256 + 0 * x + 0 * y, number // 256 + x + 0 * y, 3 * y + 0 * x + 0 * number]
    return np.stack(planes, axis=-1).astype(np.uint8)


def sheet_of(images: np.ndarray) -> Image.Image:
    """Lay out images row by row."""
    rows = [np.concatenate(images[50 * r : 50 * r + 50], axis=1) for r in range(50)]
    return Image.fromarray(np.concatenate(rows))


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    """A folder of valid sheets, one per part."""
    folder = tmp_path / "cifar100"
    folder.mkdir()
    sheet = sheet_of(made_images())
    for part in ("train", "test"):
        sheet.save(folder / f"{part}-00.webp", lossless=True, method=0, quality=0)
        np.save(folder / f"{part}-fine.npy", (np.arange(2500) % 100).astype(np.uint8))
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")


def loaded(root: Path) -> CIFAR100DataModule:
    data = CIFAR100DataModule(root=str(root), val_size=4)
    data.prepare_data()
    data.setup()
    return data


def refused(root: Path) -> str:
    """Return the error message, which must be one line."""
    with pytest.raises(UserError) as caught:
        loaded(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sheets_are_cut_into_images_in_order(sheets: Path) -> None:
    train, test = CIFAR100DataModule(root=str(sheets.parent)).load()
    expected = torch.from_numpy(made_images()).permute(0, 3, 1, 2)
    for split in (train, test):
        assert torch.equal(split.inputs, expected)
        assert torch.equal(split.target, torch.arange(2500) % 100)


@pytest.mark.parametrize("file", ["train-00.webp", "test-00.webp", "test-fine.npy"])
def test_missing_file_is_named(sheets: Path, file: str) -> None:
    (sheets / file).unlink()
    message = refused(sheets.parent)
    assert message.startswith(f"{sheets / file} is missing")
    assert "data.root=" in message


def test_labels_without_a_sheet_are_an_error(sheets: Path) -> None:
    np.save(sheets / "train-fine.npy", np.zeros(5000, np.uint8))
    assert f"{sheets / 'train-01.webp'} is missing" in refused(sheets.parent)


@pytest.mark.parametrize("length", [0, 11, 40, 5000])
def test_truncated_sheet_is_refused(sheets: Path, length: int) -> None:
    file = sheets / "test-00.webp"
    file.write_bytes(file.read_bytes()[:length])
    assert f"{file} is damaged or of another kind" in refused(sheets.parent)


def png(file: Path) -> None:
    sheet_of(made_images()).save(file, format="PNG")


def too_small(file: Path) -> None:
    Image.new("RGB", (1600, 1599)).save(file, lossless=True)


@pytest.mark.parametrize("draw", [png, too_small])
def test_sheet_of_another_format_or_size_is_refused(
    sheets: Path, draw: Callable[[Path], None]
) -> None:
    draw(sheets / "train-00.webp")
    assert f"{sheets / 'train-00.webp'} is damaged or of another kind" in refused(sheets.parent)


class RunsCode:
    """An object that creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros(2500, np.int64),
        np.zeros((2500, 1), np.uint8),
        np.zeros(2499, np.uint8),
        np.zeros(0, np.uint8),
        np.full(2500, 100, np.uint8),
    ],
)
def test_invalid_labels_are_refused(sheets: Path, labels: np.ndarray) -> None:
    np.save(sheets / "train-fine.npy", labels)
    message = refused(sheets.parent)
    assert f"{sheets / 'train-fine.npy'} is damaged or of another kind" in message


def test_pickled_labels_are_refused_without_running_code(sheets: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for save in (
        lambda file: np.save(file, np.array([RunsCode(trace)]), allow_pickle=True),
        lambda file: file.write_bytes(pickle.dumps(RunsCode(trace))),
    ):
        save(sheets / "train-fine.npy")
        assert "is damaged or of another kind" in refused(sheets.parent)
    assert not trace.exists()


# torchvision's own files


def entry(samples: int) -> dict[str, Any]:
    images = made_images()[:samples].transpose(0, 3, 1, 2)
    return {"data": images.reshape(samples, -1), "fine_labels": [n % 3 for n in range(samples)]}


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of generated pickles whose checksums torchvision accepts."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    content = {"train": entry(30), "test": entry(9), "meta": {"fine_label_names": ["a", "b", "c"]}}
    sums = {}
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    return folder


@pytest.mark.usefixtures("no_network")
def test_files_of_torchvision_are_read(official: Path) -> None:
    data = loaded(official.parent)
    assert [len(data.splits[s].target) for s in ("train", "val", "test")] == [26, 4, 9]
    expected = torch.from_numpy(made_images()[:9]).permute(0, 3, 1, 2)
    assert torch.equal(data.splits["test"].inputs, expected)
    assert data.splits["test"].target.tolist() == [0, 1, 2] * 3


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_changed_pickle_is_refused_without_running_code(
    official: Path, tmp_path: Path, file: str
) -> None:
    (official / file).write_bytes(pickle.dumps(RunsCode(tmp_path / "trace")))
    message = refused(official.parent)
    assert f"the files in {official} are damaged or not the official ones" in message
    assert "data.root=" in message
    assert not (tmp_path / "trace").exists()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("there", [False, True])
def test_failed_download_names_both_remedies(official: Path, there: bool) -> None:
    (official / "meta").unlink()
    root = official.parent if there else official / "elsewhere"
    message = refused(root)
    assert f"CIFAR100 is not in {root}" in message
    assert "data=digits" in message
    assert "data.root=" in message


# the experiment


def test_experiment_has_the_published_settings() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", ["experiment=cifar100", "run_dir=x"])
    assert (cfg.teacher.depth, cfg.student.depth) == (56, 20)
    assert (cfg.data.batch_size, cfg.data.val_size) == (64, 5000)
    assert (cfg.augment.shift, cfg.augment.flip, cfg.augment.views) == (4, True, 0)
    assert (cfg.method.alpha, cfg.method.temperature) == (0.9, 4)
    for section in (cfg, cfg.pretrain):
        assert section.trainer.max_epochs == 240
        assert section.optimizer._target_ == "torch.optim.SGD"
        values = (section.optimizer.lr, section.optimizer.momentum, section.optimizer.weight_decay)
        assert values == (0.05, 0.9, 5e-4)
        assert section.lr_scheduler.milestones == [150, 180, 210]
        assert section.lr_scheduler.gamma == 0.1


@pytest.mark.slow
def test_experiment_runs_end_to_end(command: Command, sheets: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = command(
        *("experiment=cifar100", "net@teacher=resnet8", "net@student=resnet8"),
        *("trainer.max_epochs=1", "pretrain.trainer.max_epochs=1", "data.train_fraction=0.2"),
        *(f"data.root={sheets.parent}", "data.val_size=500", f"hydra.run.dir={run_dir}"),
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert (metrics["parameters"], metrics["teacher_parameters"]) == (83_892, 83_892)
    teacher = Path(json.loads((run_dir / "run.json").read_text())["teacher"])
    taught = yaml.safe_load((teacher / ".hydra/config.yaml").read_text())
    assert taught["optimizer"]["_target_"] == "torch.optim.SGD"
    assert taught["lr_scheduler"]["milestones"] == [150, 180, 210]
    assert (taught["trainer"]["max_epochs"], taught["data"]["augment"]["shift"]) == (1, 4)
