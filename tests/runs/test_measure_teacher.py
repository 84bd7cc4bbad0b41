"""Tests of the teacher's figures on validation data, measured before the student trains."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_lightning import DistillationModule, TeacherCache
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.runs.teacher import measure_teacher
from kd_lightning.tasks import Classification

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    data = DigitsDataModule()
    data.setup()
    return data


def module_of(
    data: DigitsDataModule, teacher: nn.Module, cache: TeacherCache | None = None
) -> DistillationModule:
    student = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    return DistillationModule(student, teacher, task=Classification(data.spec), cache=cache)


def fitted(data: DigitsDataModule) -> nn.Module:
    """A linear teacher, a few steps from its initial weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    (_, index, x), *_ = data.prepared("train").batches(CPU)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(net(x), data.labels[index]).backward()
        optimizer.step()
    return net


def test_figures_are_those_of_all_validation_samples(
    data: DigitsDataModule, caplog: pytest.LogCaptureFixture
) -> None:
    net = fitted(data)
    with caplog.at_level(logging.INFO):
        found = measure_teacher(module_of(data, net, TeacherCache(None)), data, CPU)
    x = torch.cat([x for *_, x in data.prepared("val").batches(CPU)]).double()
    z, y = net.double()(x), data.splits["val"].target
    assert found["accuracy"] == pytest.approx((z.argmax(1) == y).double().mean().item())
    assert found["loss"] == pytest.approx(F.cross_entropy(z, y).item(), rel=1e-4)
    assert f"accuracy {100 * found['accuracy']:.2f} %" in caplog.text
    assert "chance" not in caplog.text


def test_a_useless_teacher_is_warned_of(
    data: DigitsDataModule, caplog: pytest.LogCaptureFixture
) -> None:
    net = fitted(data)
    with torch.no_grad():
        net[1].weight.copy_(net[1].weight.roll(3, 0))  # its classes are in another order
    with caplog.at_level(logging.WARNING):
        measure_teacher(module_of(data, net), data, CPU)
    assert "hardly better than chance (10 % accuracy, loss 2.3)" in caplog.text
