"""Tests of the gradient balance: its values, and that it does not affect training."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from kd_lightning.callbacks.gradients import GradientBalance, balance
from kd_lightning.callbacks.pictures import Pictures
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.data.types import Batch
from kd_lightning.modules import DistillationModule, TeacherModule
from kd_lightning.nets.cnn import TeacherCNN
from kd_lightning.nets.mlp import MLP
from kd_lightning.objective import Objective
from kd_lightning.schedules import LearnedTemperature
from kd_lightning.tasks.classification import Classification
from kd_lightning.transfer.crd import CRD
from kd_lightning.transfer.fitnet import FitNet


class Restless(nn.Module):
    """A student that an extra pass would change: it has dropout and batch normalisation."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(num_classes))
        self(torch.zeros(2, *input_shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.map(x))


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    """A tenth of the digits: 129 training samples in 9 batches."""
    data = DigitsDataModule(batch_size=16, train_fraction=0.1)
    data.setup()
    return data


def restless(data: DigitsDataModule) -> DistillationModule:
    """A module with dropout, batch statistics, a memory bank, a regressor and a learned T."""
    torch.manual_seed(3)
    transfer = {"crd": CRD(negatives=16, size=8, weight=0.1), "fitnet": FitNet(weight=0.1)}
    teacher = TeacherCNN(data.spec.input_shape, data.spec.num_classes, width=4)
    objective = Objective(temperature=LearnedTemperature(), transfer=transfer)
    task = Classification(data.spec)
    return DistillationModule(Restless, teacher, objective, data.labels, task=task)


def fit(module: L.LightningModule, data: DigitsDataModule, *callbacks: L.Callback, logger: Any):
    torch.manual_seed(4)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=logger,
        callbacks=list(callbacks),
        **dict.fromkeys(
            ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        ),
    )
    trainer.fit(module, data)
    return torch.rand(3)


def test_training_is_bitwise_identical(data: DigitsDataModule, tmp_path: Path) -> None:
    plain, watched = restless(data), restless(data)
    drawn = fit(plain, data, logger=False)
    board = TensorBoardLogger(tmp_path, default_hp_metric=False)
    drawn_watched = fit(watched, data, GradientBalance(1), Pictures(100), logger=board)
    state, state_watched = plain.state_dict(), watched.state_dict()
    assert any("bank_s" in name for name in state)
    assert any("running_mean" in name for name in state)
    assert any("theta" in name for name in state)
    for name, value in state.items():
        assert torch.equal(value, state_watched[name]), name
    assert torch.equal(drawn, drawn_watched)  # later random numbers are the same, too


class Notes(DummyLogger):
    """A logger that stores gradient figures by step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if any(name.startswith("gradient/") for name in metrics):
            assert step not in self.rows
            self.rows[step] = metrics


@pytest.mark.parametrize(("every", "steps"), [(4, [0, 4, 8, 12, 16]), (100, [0]), (0, [])])
def test_it_logs_every_n_batches(
    data: DigitsDataModule, tmp_path: Path, every: int, steps: list[int]
) -> None:
    notes, board = Notes(), TensorBoardLogger(tmp_path, default_hp_metric=False)
    fit(restless(data), data, GradientBalance(every), logger=[board, notes])
    assert list(notes.rows) == steps
    terms = ("response", "crd", "fitnet")
    names = {f"gradient/{name}" for name in ("hard", *terms)}
    for row in notes.rows.values():
        assert set(row) == names | {f"gradient/cosine_{name}" for name in terms}


def test_nothing_is_logged_without_tensorboard_or_for_a_teacher(
    data: DigitsDataModule, tmp_path: Path
) -> None:
    notes = Notes()
    fit(restless(data), data, GradientBalance(1), logger=[CSVLogger(tmp_path), notes])
    board = TensorBoardLogger(tmp_path, default_hp_metric=False)
    fit(
        TeacherModule(MLP, task=Classification(data.spec)),
        data,
        GradientBalance(1),
        logger=[board, notes],
    )
    assert notes.rows == {}


def gradient_of(loss: Tensor, net: nn.Module) -> Tensor:
    net.zero_grad()
    loss.backward(retain_graph=True)
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def test_norms_and_cosines_equal_those_of_backward(data: DigitsDataModule) -> None:
    torch.manual_seed(5)
    shape = (data.spec.input_shape, data.spec.num_classes)
    objective = Objective(alpha=0.3, hard_weight=0.25)
    module = DistillationModule(MLP(*shape), MLP(*shape), objective)
    samples = data.splits["train"].take(torch.arange(16))
    inputs = samples.inputs.float() / 255
    batch = Batch(inputs, samples.target, torch.arange(16))
    found = balance(module, batch)
    terms = module.terms(batch)
    hard, response = (gradient_of(terms[name], module.student) for name in ("hard", "response"))
    assert found["gradient/hard"] == pytest.approx(0.25 * hard.norm().item(), rel=1e-5)
    assert found["gradient/response"] == pytest.approx(0.3 * response.norm().item(), rel=1e-5)
    cosine = (hard @ response / hard.norm() / response.norm()).item()
    assert found["gradient/cosine_response"] == pytest.approx(cosine, rel=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_cosine_is_one_for_equal_and_minus_one_for_opposite_gradients(
    data: DigitsDataModule, sign: int
) -> None:
    torch.manual_seed(5)
    shape = (data.spec.input_shape, data.spec.num_classes)
    objective = Objective(response=partial(signed_hard_loss, sign), alpha=0.5)
    module = DistillationModule(MLP(*shape), MLP(*shape), objective)
    samples = data.splits["train"].take(torch.arange(16))
    found = balance(module, Batch(samples.inputs.float() / 255, samples.target, torch.arange(16)))
    assert found["gradient/cosine_response"] == pytest.approx(sign, abs=1e-5)
    assert found["gradient/response"] == pytest.approx(found["gradient/hard"], rel=1e-5)


def signed_hard_loss(sign: int, z_s: Tensor, z_t: Tensor, target: Tensor) -> Tensor:
    """A response loss whose gradient is that of the hard loss, or its opposite."""
    return sign * F.cross_entropy(z_s, target)
