"""Tests of the pictures: which samples they contain, and when they are drawn."""

import io
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kd_lightning.callbacks.pictures import (
    Pictures,
    as_images,
    image_of,
    one_per_class,
    probabilities,
)
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.modules import DistillationModule, TeacherModule
from kd_lightning.nets.mlp import MLP
from kd_lightning.objective import Objective
from kd_lightning.schedules import LearnedTemperatures
from kd_lightning.tasks.classification import Classification


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    """A tenth of the digits for training; all 144 for validation."""
    data = DigitsDataModule(train_fraction=0.1)
    data.setup()
    return data


def module_of(data: DigitsDataModule, **settings: Any) -> DistillationModule:
    """A student of an ensemble of two teachers."""
    torch.manual_seed(0)
    shape = (data.spec.input_shape, data.spec.num_classes)
    teachers = [MLP(*shape), MLP(*shape)]
    task = Classification(data.spec)
    return DistillationModule(MLP, teachers, Objective(**settings), task=task)


class Sheets(Pictures):
    """A callback that stores what it would draw, by whether the network is trained."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.sheets: dict[bool, dict[str, Tensor]] = {}

    def _draw(self, sheet: dict[str, Tensor], is_trained: bool) -> dict[str, Any]:
        self.sheets[is_trained] = sheet
        return super()._draw(sheet, is_trained)


class Board:
    """A writer that stores the names and steps of its images."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int]] = []

    def _get_file_writer(self) -> "Board":
        return self

    def add_summary(self, summary: Any, step: int) -> None:
        (value,) = summary.value
        image = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
        assert image.shape == (value.image.height, value.image.width, 3)
        assert image.dtype == np.uint8
        self.shown.append((value.tag.removeprefix("pictures/"), step))


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    board = Board()
    monkeypatch.setattr("kd_lightning.callbacks.pictures.boards", lambda _: [board])
    return board


def trained(module: Any, data: DigitsDataModule, callback: L.Callback) -> int:
    """Train for one epoch and validate; return the last step."""
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger")
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[callback], **dict.fromkeys(quiet, False)
    )
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    return trainer.global_step


@pytest.mark.parametrize("count", [1, 130, 1000])
@pytest.mark.usefixtures("board")
def test_pictures_contain_the_first_samples(data: DigitsDataModule, count: int) -> None:
    module, callback = module_of(data, temperature=3.0), Sheets(count)
    before = [module.teacher, module.student]
    inputs = next(data.prepared("val").batches(torch.device("cpu")))[2][:1]
    with torch.no_grad():
        z_t, z_s = (net.eval()(inputs) for net in before)  # 1×2×C and 1×C, untrained
    trained(module, data, callback)
    size, split = min(count, 144), data.splits["val"]
    for sheet in callback.sheets.values():
        assert {len(values) for values in sheet.values()} == {size}
        assert torch.equal(sheet["inputs"], split.inputs[:size])
        assert torch.equal(sheet["target"], split.target[:size])
        assert sheet["temperature"].unique().tolist() == [3]
        for name, t in (("teacher", 1), ("soft_teacher", 3)):
            torch.testing.assert_close(sheet[name][:1], (z_t / t).softmax(2).mean(1))
    untrained, after = callback.sheets[False], callback.sheets[True]
    torch.testing.assert_close(untrained["soft_student"][:1], (z_s / 3).softmax(1))
    with torch.no_grad():
        torch.testing.assert_close(after["student"][:1], module.eval()(inputs).softmax(1))


@pytest.mark.usefixtures("board")
def test_each_sample_may_have_its_own_temperature(data: DigitsDataModule) -> None:
    callback = Sheets(10)
    module = module_of(data, temperature=LearnedTemperatures(), ensemble="logits")
    trained(module, data, callback)
    for sheet in callback.sheets.values():
        assert sheet["temperature"].shape == (10,)
        torch.testing.assert_close(sheet["soft_student"].sum(1), torch.ones(10))
    # softmax(z/T) from softmax(z): raise to the power 1/T and normalise
    sharp = sheet["student"] ** (1 / sheet["temperature"][:, None])
    expected = sharp / sharp.sum(1, keepdim=True)
    torch.testing.assert_close(sheet["soft_student"], expected, rtol=1e-3, atol=1e-5)


def test_without_a_teacher_there_are_only_the_students_probabilities() -> None:
    logits, target = torch.tensor([[0.0, 1.0]]), torch.tensor([1])
    found = probabilities({"logits": logits, "target": target})
    assert set(found) == {"target", "student"}
    torch.testing.assert_close(found["student"], logits.softmax(1))


def test_one_per_class_is_the_first_sample_of_each_class() -> None:
    assert one_per_class(torch.tensor([4, 2, 2, 9, 4, 0]), count=3) == [5, 1, 0]


def test_images_are_restored_from_normalised_inputs(data: DigitsDataModule) -> None:
    inputs = next(data.prepared("val").batches(torch.device("cpu")))[2]
    restored = as_images(inputs, data.spec)
    assert torch.equal(restored, data.splits["val"].inputs[: len(inputs)])
    assert as_images(inputs, None) is inputs


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
def test_inputs_that_are_not_images_are_not_drawn(
    sample: torch.Tensor, shape: tuple[int, ...] | None
) -> None:
    found = image_of(sample)
    assert (found if found is None else found.shape) == shape


def test_student_is_drawn_before_and_after_training(data: DigitsDataModule, board: Board) -> None:
    last = trained(module_of(data), data, Pictures(50))
    assert board.shown == [
        ("confusion", 0),
        ("soft_targets", 0),
        ("confusion", last),
        ("soft_targets", last),
        ("disagreement", last),
    ]


def test_teacher_has_only_a_confusion_matrix(data: DigitsDataModule, board: Board) -> None:
    module = TeacherModule(MLP, task=Classification(data.spec))
    last = trained(module, data, Pictures(50))
    assert board.shown == [("confusion", 0), ("confusion", last)]
