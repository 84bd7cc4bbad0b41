"""Tests of the .npz data set: accepted layouts and types, and the error for each defect."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_lightning.data.arrays import ArraysDataModule
from kd_lightning.data.types import UNLABELLED
from kd_lightning.utils.errors import UserError

Arrays = dict[str, Any]


@pytest.fixture
def arrays() -> Arrays:
    """Grey images of 6×7 in four classes: 30 for training, 8 for the test."""
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (30, 6, 7), dtype=np.uint8),
        "y_train": np.arange(30) % 4,
        "x_test": random.integers(0, 256, (8, 6, 7), dtype=np.uint8),
        "y_test": np.arange(8) % 4,
    }


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "own.npz"


def loaded(path: Path) -> ArraysDataModule:
    data = ArraysDataModule(str(path), val_size=5)
    data.prepare_data()
    data.setup()
    return data


def refused(path: Path) -> str:
    """Return the error message, which must be one line that names the archive."""
    with pytest.raises(UserError) as caught:
        loaded(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_valid_archive_is_read_unchanged(arrays: Arrays, archive: Path) -> None:
    np.savez(archive, **arrays)
    data = loaded(archive)
    assert {k: len(s.target) for k, s in data.splits.items()} == {"train": 25, "val": 5, "test": 8}
    assert data.spec.input_shape == (1, 6, 7)
    assert data.spec.num_classes == 4
    test = data.splits["test"]
    np.testing.assert_array_equal(test.inputs[:, 0].numpy(), arrays["x_test"])
    assert test.target.dtype == torch.int64
    assert test.target.tolist() == arrays["y_test"].tolist()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [True, False])
def test_channels_may_come_first_or_last(
    arrays: Arrays, archive: Path, channels: int, last: bool
) -> None:
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (8, channels, 6, 7), dtype=np.uint8)
    stored = images.transpose(0, 2, 3, 1) if last else images
    train = np.repeat(stored, 4, axis=0)[:30]
    np.savez_compressed(archive, **{**arrays, "x_train": train, "x_test": stored})
    data = loaded(archive)
    assert data.spec.input_shape == (channels, 6, 7)
    np.testing.assert_array_equal(data.splits["test"].inputs.numpy(), images)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_rounded_to_256_levels(arrays: Arrays, archive: Path, dtype: type) -> None:
    # off by up to 0.3 levels, less than half of one, so rounding restores the bytes
    between = np.random.default_rng(2).uniform(-0.3, 0.3, (8, 6, 7))
    scaled = {
        "x_train": (arrays["x_train"] / 255).astype(dtype),
        "x_test": ((arrays["x_test"] + between).clip(0, 255) / 255).astype(dtype),
    }
    np.savez(archive, **{**arrays, **scaled})
    found = loaded(archive).splits["test"].inputs
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found[:, 0].numpy(), arrays["x_test"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, ">i4", np.uint64])
def test_labels_may_have_any_integer_type(arrays: Arrays, archive: Path, dtype: Any) -> None:
    np.savez(archive, **{**arrays, "y_test": arrays["y_test"].astype(dtype)})
    assert loaded(archive).splits["test"].target.tolist() == arrays["y_test"].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x_train": np.zeros((29, 6, 7), np.uint8)},
            "x_train has 29 samples and y_train has 30 labels",
        ),
        ({"y_test": np.zeros(9, int)}, "x_test has 8 samples and y_test has 9 labels"),
        ({"x_test": np.zeros((0, 6, 7), np.uint8), "y_test": np.zeros(0, int)}, "not zero"),
        ({"y_train": np.arange(30) % 4 - 1}, "y_train contains label -1; labels start at 0"),
        ({"y_test": np.arange(8)}, "y_test contains label 7, but y_train only 0…3"),
        ({"y_train": np.zeros(30, int), "y_test": np.zeros(8, int)}, "at least two classes"),
        ({"y_train": np.arange(30) / 4}, "y_train must be a vector of integers"),
        (
            {"y_train": np.ones((30, 4), int)},
            "integers, one per sample; it is int64 of shape (30, 4)",
        ),
        ({"y_test": np.array(["a"] * 8)}, "y_test must be a vector of integers"),
        ({"x_train": np.full((30, 6, 7), 1.5)}, "uint8, or floats in 0…1; it is float64 from 1.5"),
        ({"x_train": np.full((30, 6, 7), -0.1)}, "x_train must be uint8, or floats in 0…1"),
        ({"x_test": np.full((8, 6, 7), np.nan)}, "x_test must be uint8, or floats in 0…1"),
        ({"x_test": np.zeros((8, 6, 7), np.int64)}, "it is int64 from 0 to 0"),
        ({"x_train": np.zeros((30, 42), np.uint8)}, "its shape is (30, 42)"),
        ({"x_train": np.zeros((30, 2, 6, 7), np.uint8)}, "with 1 or 3 channels"),
        (
            {"x_test": np.zeros((8, 7, 7), np.uint8)},
            "of shape (1, 6, 7), x_test of shape (1, 7, 7)",
        ),
        ({k: np.zeros((n, 0, 7), np.uint8) for k, n in [("x_train", 30), ("x_test", 8)]}, "empty"),
        ({"y_train": np.array([None] * 30, dtype=object)}, "Object arrays cannot be loaded"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_invalid_arrays_are_refused(
    arrays: Arrays, archive: Path, change: Arrays, message: str
) -> None:
    np.savez(archive, **{**arrays, **change})
    assert message in refused(archive)


@pytest.mark.parametrize("missing", [("y_test",), ("x_train", "y_train"), ("x_test",)])
def test_missing_arrays_are_named(arrays: Arrays, archive: Path, missing: tuple[str, ...]) -> None:
    np.savez(archive, **{k: v for k, v in arrays.items() if k not in missing})
    message = refused(archive)
    assert f"has no {', '.join(missing)};" in message
    assert "it needs x_train, y_train, x_test, y_test" in message


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_archive_is_refused(
    arrays: Arrays, archive: Path, save: Any, share: float
) -> None:
    save(archive, **arrays)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(share * len(whole))])
    assert "is not an .npz archive, or is truncated" in refused(archive)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flipped_byte_is_an_error_or_changes_nothing(
    arrays: Arrays, archive: Path, save: Any
) -> None:
    save(archive, **arrays)
    whole, before = archive.read_bytes(), loaded(archive)
    messages = []
    # every 41st byte reaches headers, names, data and the directory of the zip file
    for position in range(0, len(whole), 41):
        archive.write_bytes(
            whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :]
        )
        try:
            assert loaded(archive).fingerprint == before.fingerprint
        except UserError as error:
            messages.append(str(error))
    # a byte in the data of any of the four arrays is an error; the rest are unused zip fields
    assert len(messages) > len(range(0, len(whole), 41)) / 2
    assert all(message.startswith(str(archive)) and "\n" not in message for message in messages)


def test_file_of_another_kind_is_refused(arrays: Arrays, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("x_train,y_train\n0,1\n")
    np.save(tmp_path / "single.npy", arrays["x_train"])
    for name in ("text.npz", "single.npy", "."):
        assert "is not an .npz archive" in refused(tmp_path / name)


def test_missing_file_is_named_with_its_option(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.npz").startswith("data.path: there is no file")


def test_images_without_labels_join_the_training_samples(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sizes = {"train": 40, "test": 20, "unlabelled": 30}
    parts = {f"x_{p}": random.integers(0, 256, (n, 6, 6), np.uint8) for p, n in sizes.items()}
    target = {"y_train": np.arange(40) % 4, "y_test": np.arange(20) % 4}
    np.savez(tmp_path / "a.npz", **parts, **target)
    data = ArraysDataModule(str(tmp_path / "a.npz"), val_size=8)
    data.setup()
    train = data.splits["train"]
    assert (train.target == UNLABELLED).sum() == 30
    assert torch.equal(train.inputs[32:, 0], torch.from_numpy(parts["x_unlabelled"]))  # pyright: ignore
    assert data.summary.startswith("62 (32 labelled) training, 8 validation")
    np.savez(tmp_path / "b.npz", **(parts | {"x_unlabelled": parts["x_test"][:, :5]}), **target)
    with pytest.raises(UserError, match=r"unlabelled images have shape \(1, 5, 6\)"):
        ArraysDataModule(str(tmp_path / "b.npz")).setup()
