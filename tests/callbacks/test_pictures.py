"""Tests of what is chosen for the pictures, and of when they are made."""

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from kd_lightning.callbacks.pictures import Pictures, evaluating, image_of, look, one_a_class
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.modules import DistillationModule, TeacherModule
from kd_lightning.nets.ensemble import Ensemble
from kd_lightning.nets.mlp import MLP
from kd_lightning.objective import Objective
from kd_lightning.schedules import LearnedTemperatures


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    """A tenth of the digits; all 144 for validation."""
    data = DigitsDataModule(train_fraction=0.1)
    data.setup()
    return data


def module_of(data: DigitsDataModule, **settings: Any) -> DistillationModule:
    torch.manual_seed(0)
    shape = (data.spec.input_shape, data.spec.num_classes)
    teacher = Ensemble([MLP(*shape), MLP(*shape)]).eval()
    return DistillationModule(MLP, teacher, Objective(**settings), data.spec)


@pytest.mark.parametrize("count", [1, 130, 1000])
def test_the_first_samples_are_looked_at_as_they_are(data: DigitsDataModule, count: int) -> None:
    module = module_of(data, temperature=3.0)
    with torch.no_grad():
        sheet = look(module, data, count)
    size = min(count, 144)
    assert {len(values) for values in sheet.values()} == {size}
    split = data.splits["val"]
    assert torch.equal(sheet["inputs"], split.inputs[:size])
    assert torch.equal(sheet["target"], split.target[:size])
    inputs = next(data.prepared("val").batches(torch.device("cpu")))[2][:1]
    z = module.teacher(inputs)  # 1×2×C
    for name, t in (("teacher", 1), ("soft_teacher", 3)):
        torch.testing.assert_close(sheet[name][:1], (z / t).softmax(2).mean(1))
    torch.testing.assert_close(sheet["soft_student"][:1], (module(inputs) / 3).softmax(1))
    assert sheet["temperature"].unique().tolist() == [3]


def test_temperatures_of_single_samples_are_looked_at_too(data: DigitsDataModule) -> None:
    module = module_of(data, temperature=LearnedTemperatures(), ensemble="logits")
    with torch.no_grad():
        sheet = look(module, data, 10)
    assert sheet["temperature"].shape == (10,)
    torch.testing.assert_close(sheet["soft_student"].sum(1), torch.ones(10))


def test_one_sample_a_class_the_first() -> None:
    assert one_a_class(torch.tensor([4, 2, 2, 9, 4, 0]), count=3) == [5, 1, 0]


@pytest.mark.parametrize(
    ("sample", "shape"),
    [
        (torch.zeros(1, 5, 6, dtype=torch.uint8), (5, 6)),
        (torch.zeros(3, 5, 6, dtype=torch.uint8), (5, 6, 3)),
        (torch.zeros(2, 5, 6, dtype=torch.uint8), None),
        (torch.zeros(3, 5, 6), None),
        (torch.zeros(12, dtype=torch.uint8), None),
    ],
)
def test_images_are_shown_where_inputs_are_images(
    sample: torch.Tensor, shape: tuple[int, ...] | None
) -> None:
    found = image_of(sample)
    assert (found if found is None else found.shape) == shape


def test_each_part_goes_on_in_the_mode_it_was_in() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    net[1].eval()
    net[1][0].train()
    before = [part.training for part in net.modules()]
    with evaluating(net):
        assert not any(part.training for part in net.modules())
    assert [part.training for part in net.modules()] == before


class Board(L.Callback):
    """Stands for a writer: keeps what it is given."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int]] = []

    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        assert image.ndim == 3
        self.shown.append((tag.removeprefix("pictures/"), step))


def shown(module: Any, data: DigitsDataModule, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What pictures a training of one epoch, and a validation after it, leave."""
    board = Board()
    monkeypatch.setattr("kd_lightning.callbacks.pictures.boards", lambda _: [board])
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger")
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[Pictures(50)], **dict.fromkeys(quiet, False)
    )
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    return board.shown, trainer.global_step


def test_a_student_is_shown_before_and_after(
    data: DigitsDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, last = shown(module_of(data), data, monkeypatch)
    assert found == [
        ("confusion", 0),
        ("soft_targets", 0),
        ("confusion", last),
        ("soft_targets", last),
        ("disagreement", last),
    ]


def test_a_teacher_has_its_confusion_alone(
    data: DigitsDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, last = shown(TeacherModule(MLP, data.spec), data, monkeypatch)
    assert found == [("confusion", 0), ("confusion", last)]
