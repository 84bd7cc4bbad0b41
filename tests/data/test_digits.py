"""Tests of the bundled digits: their splits and their resizing."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from kd_lightning.data.digits import DigitsDataModule


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    data = DigitsDataModule()
    data.prepare_data()
    data.setup()
    return data


def enlarged(image: np.ndarray) -> np.ndarray:
    """Resize 8×8 to 28×28: linear between pixel centres, constant beyond the outer ones."""
    where = np.clip((np.arange(28) + 0.5) * 8 / 28 - 0.5, 0, 7)
    low = np.minimum(where.astype(int), 6)
    weights = np.zeros((28, 8))
    weights[np.arange(28), low] = 1 - (where - low)
    weights[np.arange(28), low + 1] += where - low
    return weights @ image @ weights.T


def test_splits_have_the_documented_sizes(data: DigitsDataModule) -> None:
    sizes = {name: len(split.target) for name, split in data.splits.items()}
    assert sizes == {"train": 1293, "val": 144, "test": 360}  # 1797 − 360 = 1437, a tenth of it
    assert data.spec.input_shape == (1, 28, 28)
    assert data.spec.num_classes == 10
    assert all(s.inputs.dtype == torch.uint8 for s in data.splits.values())
    assert all(s.inputs.shape[1:] == (1, 28, 28) for s in data.splits.values())


def test_last_360_samples_are_the_test_set(data: DigitsDataModule) -> None:
    assert data.splits["test"].target.tolist() == load_digits().target[-360:].tolist()


def test_training_and_validation_contain_all_other_samples(data: DigitsDataModule) -> None:
    target = torch.cat([data.splits["train"].target, data.splits["val"].target])
    expected = np.bincount(load_digits().target[:-360])
    assert torch.bincount(target).tolist() == expected.tolist()


@pytest.mark.parametrize("number", [0, 1, 359])
def test_images_are_resized_bilinearly(data: DigitsDataModule, number: int) -> None:
    expected = 255 * enlarged(load_digits().images[-360 + number] / 16)
    found = data.splits["test"].inputs[number, 0].numpy().astype(float)
    assert np.abs(found - expected).max() <= 0.5 + 1e-3  # rounded, not truncated
