"""Tests of the in-memory data module: splits, training-set changes, normalisation."""

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_lightning.data.batches import Split
from kd_lightning.data.images import ImageDataModule
from kd_lightning.data.types import Batch
from kd_lightning.utils.errors import UserError

SIZE, TEST_SIZE, CLASSES = 200, 40, 5


class MadeData(ImageDataModule):
    """240 colour images of 4×4 whose first value is the number of the sample."""

    shade = 100

    def load(self) -> tuple[Split, Split]:
        numbers = torch.arange(SIZE + TEST_SIZE)
        images = torch.randint(0, 256, (len(numbers), 3, 4, 4), generator=self._generator())
        images[:, 1] //= 4
        images[:, 2] = self.shade
        images[:, 0, 0, 0] = numbers
        everything = Split(images.byte(), numbers % CLASSES)
        return everything.take(numbers[:SIZE]), everything.take(numbers[SIZE:])

    @staticmethod
    def _generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)


def made(**settings: Any) -> MadeData:
    data = MadeData(**settings)
    data.setup()
    return data


def numbers(data: ImageDataModule, split: str) -> list[int]:
    return data.splits[split].inputs[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("val_size", "count"), [(0.1, 20), (0.333, 67), (1, 1), (50, 50), (199, 199), (0.001, 1)]
)
def test_validation_samples_are_taken_out_of_the_training_set(val_size: float, count: int) -> None:
    data = made(val_size=val_size)
    train, val = numbers(data, "train"), numbers(data, "val")
    assert len(val) == count
    assert sorted(train + val) == list(range(SIZE))
    assert numbers(data, "test") == list(range(SIZE, SIZE + TEST_SIZE))


def test_split_depends_on_its_own_seed_alone() -> None:
    one = numbers(made(split_seed=0, seed=0), "val")
    assert numbers(made(split_seed=0, seed=7), "val") == one
    assert numbers(made(split_seed=1, seed=0), "val") != one


def test_samples_keep_their_stored_type_and_values() -> None:
    data = made()
    full, test = data.load()
    for split, source in [("train", full), ("val", full), ("test", test)]:
        found = data.splits[split]
        assert found.inputs.dtype == torch.uint8
        assert found.target.dtype == torch.int64
        rows = torch.tensor(numbers(data, split)) - (SIZE if split == "test" else 0)
        assert torch.equal(found.inputs, source.inputs[rows])
        assert torch.equal(found.target, source.target[rows])


def test_second_setup_changes_nothing() -> None:
    data = made()
    before = data.splits
    data.setup("test")
    assert data.splits is before


def test_spec_is_computed_from_the_training_samples() -> None:
    data = made()
    x = data.splits["train"].inputs.numpy().astype(np.float64) / 255
    assert data.spec.input_shape == (3, 4, 4)
    assert data.spec.num_classes == CLASSES
    np.testing.assert_allclose(data.spec.mean, x.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.spec.std[:2], x.std(axis=(0, 2, 3))[:2], rtol=1e-12)
    assert data.spec.std[2] == 1e-6  # a constant channel: the lower bound, not zero


def test_given_mean_and_std_are_used() -> None:
    data = made(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert data.spec.mean == (0.1, 0.2, 0.3)
    assert data.spec.std == (0.4, 0.5, 0.6)


class Recorder(L.LightningModule):
    """A module that stores its batches of training (by epoch), validation and test."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: dict[str, list[Batch]] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.setdefault(f"train {self.current_epoch}", []).append(batch)
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen.setdefault("val", []).append(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen.setdefault("test", []).append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_module_receives_every_sample_normalised_with_its_index() -> None:
    data = made(batch_size=32, eval_batch_size=24, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    recorder = Recorder()
    trainer.fit(recorder, data)
    trainer.test(recorder, data, verbose=False)
    tensors = {name: [batch[:3] for batch in batches] for name, batches in recorder.seen.items()}
    seen = {name: [torch.cat(x) for x in zip(*b, strict=True)] for name, b in tensors.items()}
    assert {name: len(batches) for name, batches in recorder.seen.items()} == {
        "train 0": 6,  # of 180 / 32
        "train 1": 6,
        "val": 2,  # two epochs of 20 / 24
        "test": 2,  # 40 / 24
    }
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in data.spec[2:4])
    for name, (inputs, target, index) in seen.items():
        split = data.splits[name.split()[0]]
        assert inputs.dtype == torch.float32
        expected = (split.inputs[index].double() / 255 - mean) / std
        torch.testing.assert_close(inputs.double(), expected, rtol=0, atol=1e-5)
        assert torch.equal(target, split.target[index])
    first, second = (seen[f"train {epoch}"][2].tolist() for epoch in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(180))
    assert seen["test"][2].tolist() == list(range(TEST_SIZE))


@pytest.mark.parametrize(("noise", "count"), [(0.0, 0), (0.1, 18), (0.333, 60), (1.0, 180)])
def test_label_noise_changes_an_exact_number_of_training_labels(noise: float, count: int) -> None:
    clean, noisy = made(), made(label_noise=noise)
    target = noisy.splits["train"].target
    assert (target != clean.splits["train"].target).sum() == count
    assert target.min() >= 0
    assert target.max() < CLASSES
    assert torch.equal(noisy.splits["train"].inputs, clean.splits["train"].inputs)
    for split in ("val", "test"):
        assert torch.equal(noisy.splits[split].target, clean.splits[split].target)


def test_label_noise_reaches_every_other_class() -> None:
    clean, noisy = made(val_size=1), made(val_size=1, label_noise=1.0)
    shift = (noisy.splits["train"].target - clean.splits["train"].target) % CLASSES
    assert set(shift.tolist()) == {1, 2, 3, 4}


def test_smaller_training_fraction_is_a_subset_of_a_larger_one() -> None:
    orders = [numbers(made(train_fraction=f), "train") for f in (0.1, 0.5, 0.75, 1.0)]
    assert [len(order) for order in orders] == [18, 90, 135, 180]
    assert all(order == orders[-1][: len(order)] for order in orders)
    assert orders[0] != sorted(orders[-1])[:18]  # a random sample, not the first of the file


def test_training_fraction_does_not_change_validation_and_test() -> None:
    whole, part = made(), made(train_fraction=0.25)
    assert all(numbers(part, split) == numbers(whole, split) for split in ("val", "test"))


def test_classes_are_excluded_from_training_only() -> None:
    whole, part = made(), made(exclude_classes=[1, 3])
    left = [n for n in numbers(whole, "train") if n % CLASSES in (0, 2, 4)]
    assert numbers(part, "train") == left
    assert all(numbers(part, split) == numbers(whole, split) for split in ("val", "test"))
    assert part.spec.num_classes == CLASSES


def test_training_set_changes_combine() -> None:
    left = [n for n in numbers(made(), "train") if n % CLASSES]
    data = made(exclude_classes=[0], train_fraction=0.5, label_noise=0.25)
    kept = round(len(left) / 2)
    assert numbers(data, "train") == left[:kept]
    clean = torch.tensor(left[:kept]) % CLASSES
    assert (data.splits["train"].target != clean).sum() == round(kept / 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size .* got 0"),
        ({"eval_batch_size": -1}, r"data\.eval_batch_size .* got -1"),
        ({"val_size": 0}, r"data\.val_size .* got 0"),
        ({"val_size": -5}, r"data\.val_size .* got -5"),
        ({"val_size": float("nan")}, r"data\.val_size .* got nan"),
        ({"val_size": SIZE}, r"data\.val_size=200 leaves no training samples out of 200"),
        ({"val_size": 0.9999}, r"data\.val_size=0\.9999 leaves no training samples"),
        ({"label_noise": -0.1}, r"data\.label_noise .* got -0\.1"),
        ({"label_noise": 1.1}, r"data\.label_noise .* got 1\.1"),
        ({"label_noise": float("nan")}, r"data\.label_noise .* got nan"),
        ({"train_fraction": 0}, r"data\.train_fraction .* got 0"),
        ({"train_fraction": 1.5}, r"data\.train_fraction .* got 1\.5"),
        ({"train_fraction": 0.001}, r"no training samples are left: see data\.train_fraction"),
        ({"exclude_classes": [2, 5]}, r"data\.exclude_classes: no class \[5\] in 0…4"),
        ({"exclude_classes": [0, 1, 2, 3, 4]}, r"no training samples are left"),
        ({"mean": [0.5] * 3}, r"both data\.mean and data\.std"),
        ({"std": [0.5] * 3}, r"both data\.mean and data\.std"),
        (
            {"mean": [0.5], "std": [0.5]},
            r"data\.mean and data\.std need one value per channel \(3\)",
        ),
    ],
)
def test_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**settings)


def test_fingerprint_depends_on_training_and_validation_data() -> None:
    def darker() -> MadeData:
        data = MadeData()
        data.shade = 99
        data.setup()
        return data

    same = [made(), made(seed=5), made(batch_size=7, eval_batch_size=9)]
    changed = [
        made(split_seed=1),
        made(val_size=19),
        made(label_noise=0.01),
        made(train_fraction=0.99),
        made(exclude_classes=[4]),
        made(mean=[0.5] * 3, std=[0.5] * 3),
        darker(),
    ]
    assert len({data.fingerprint for data in same}) == 1
    assert len({data.fingerprint for data in [same[0], *changed]}) == 1 + len(changed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_resident_samples_are_equal_and_on_the_training_device() -> None:
    trainer = L.Trainer(accelerator="gpu", devices=1, logger=False)
    batches = {}
    for resident in (False, True):
        data = made(device_resident=resident)
        data.trainer = trainer
        batches[resident] = [*data.train_dataloader(), *data.test_dataloader()]
    for here, there in zip(batches[False], batches[True], strict=True):
        assert there.inputs.device == there.target.device == trainer.strategy.root_device
        for before, after in zip(here, there, strict=True):
            assert torch.equal(before, after.cpu())
