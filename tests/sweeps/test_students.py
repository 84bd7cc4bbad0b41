"""Tests of the maths of training together: as separate students, to rounding."""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.losses import response
from kd_lightning.modules import DistillationModule
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.nets.mlp import MLP
from kd_lightning.nets.resnet import ResNet
from kd_lightning.objective import Objective
from kd_lightning.sweeps import probe
from kd_lightning.sweeps.evaluation import samples_of
from kd_lightning.sweeps.group import _why_not
from kd_lightning.sweeps.history import History
from kd_lightning.sweeps.optimizer import StackedOptimizer
from kd_lightning.sweeps.recipe import Limits, Recipe
from kd_lightning.sweeps.students import Students
from kd_lightning.sweeps.training import Training
from kd_lightning.tasks import Classification

COUNT, BATCH, CLASSES = 3, 5, 10


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def networks(make: Callable[[], nn.Module]) -> list[nn.Module]:
    torch.manual_seed(0)
    return [make().train() for _ in range(COUNT)]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(COUNT, BATCH, 1, 14, 14, generator=generator)
    z_t = torch.randn(COUNT, BATCH, CLASSES, generator=generator)
    return x, z_t, torch.randint(0, CLASSES, (COUNT, BATCH), generator=generator)


NETWORKS = {
    "cnn": partial(StudentCNN, (1, 14, 14), CLASSES, width=3),
    "batch norm": partial(ResNet, (1, 14, 14), CLASSES, depth=8, stem=4),
}
LOSSES = ["soft_targets", "decoupled", "correlation", "standardized_soft_targets", "logit_mse"]


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_terms_gradients_and_buffers(make: Callable[[], nn.Module], loss: str) -> None:
    nets, (x, z_t, y) = networks(make), batch()
    objective = partial(Objective, response=getattr(response, loss))
    values = {"alpha": [0.5, 0.9, 0.1], "temperature": [1.0, 4.0, 9.0]}
    values["hard_weight"] = [1 - alpha for alpha in values["alpha"]]
    students = Students(nets[0], [net.state_dict() for net in nets])
    own = {name: torch.tensor(row) for name, row in values.items()}
    terms = students.terms(objective(), own, x, z_t, y, y)
    terms["loss"].sum().backward()
    for i, net in enumerate(nets):
        alone = objective(alpha=values["alpha"][i], temperature=values["temperature"][i])
        expected = alone({"logits": net(x[i])}, {"logits": z_t[i]}, y[i], y[i])
        expected["loss"].backward()
        assert {k: v[i].item() for k, v in terms.items()} == pytest.approx(
            {k: v.item() for k, v in expected.items()}, rel=1e-12
        )
        for name, weight in net.named_parameters():
            torch.testing.assert_close(students.weights[name].grad[i], weight.grad)
        state = students.of(students.state, i)
        assert state.keys() == net.state_dict().keys()
        for name, buffer in net.named_buffers():
            torch.testing.assert_close(state[name], buffer)


RATES, DECAYS = (0.1, 0.1, 0.1), (0.01, 0.01, 0.01)


@pytest.mark.parametrize("rates", [RATES, (0.1, 0.01, 0.2)])
@pytest.mark.parametrize("decays", [DECAYS, (0.0, 0.1, 0.01)])
@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adam,
        torch.optim.AdamW,
        partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    ],
)
def test_optimizer(make: Any, rates: Sequence[float], decays: Sequence[float]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(COUNT, 2, 4), torch.randn(5, COUNT, 2, 4)
    alone = [nn.Parameter(w.clone()) for w in start]
    separate = [
        make([w], lr=r, weight_decay=d) for w, r, d in zip(alone, rates, decays, strict=True)
    ]
    weight = start.clone().requires_grad_()
    together = StackedOptimizer({"w": weight}, partial(make, lr=0.5), separate)
    for step in gradients:
        weight.grad = step.clone()
        together.step()
        for w, optimizer, own in zip(alone, separate, step, strict=True):
            w.grad = own.clone()
            optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.stack([w.detach() for w in alone]))


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., History]:
    """Trains two students on some of the digits, with given learning rates."""

    def make(*rates: float, epochs: int = 2) -> Training:
        data = DigitsDataModule(train_fraction=0.1)
        data.setup()
        torch.manual_seed(0)
        student = StudentCNN(data.spec.input_shape, CLASSES, width=2)
        teacher = MLP(data.spec.input_shape, CLASSES, hidden=[])
        module = DistillationModule(student, teacher, Objective(), task=Classification(data.spec))
        optimizers = [torch.optim.Adam(student.parameters(), lr=rate) for rate in rates]
        recipes = [Recipe(module.objective, one, None, data, "best.ckpt") for one in optimizers]
        limits = Limits(epochs, 50, 200, "val/accuracy", lambda new, old: new > old, "lr-Adam")
        states = [copy.deepcopy(student.state_dict()) for _ in rates]
        val = samples_of(data, "val", module, torch.device("cpu"))
        return Training(Students(student, states), module, torch.optim.Adam, recipes, limits, val)

    return make


def test_a_student_that_diverges_changes_no_other(trained: Callable[..., Training]) -> None:
    well, ill = trained(1e-3, 1e-2).run(), trained(1e-3, 1e30).run()
    assert (well.problems, ill.problems.keys()) == ({}, {1})
    assert ill.problems[1].startswith("the loss is not finite at step 2: loss=")
    assert (ill.last.epochs, ill.best.epochs[0]) == ([1, -1], well.best.epochs[0])
    for name, value in well.last.state.items():
        torch.testing.assert_close(ill.last.state[name][0], value[0], rtol=0, atol=1e-12)


def test_a_step_is_compared_with_that_of_separate_students(
    trained: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe.disagreement(trained(1e-3, 1e-2)) == ""
    # a loss of the whole group, which a student alone does not have
    monkeypatch.setattr(Students, "of", lambda self, state, i: {k: v[0] for k, v in state.items()})
    training = trained(1e-3, 1e-2)
    with torch.no_grad():
        next(iter(training.students.weights.values()))[1] += 1.0
    assert "is not that of a separate student" in probe.disagreement(training)


class Noisy(nn.Module):
    """A layer that draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_random_numbers_are_found(trained: Callable[..., Training]) -> None:
    training = trained(1e-3, 1e-2)
    training.students.net.features[1] = Noisy()
    assert "does not run under torch.vmap" in probe.disagreement(training)


@pytest.mark.parametrize(("alone", "is_faster"), [(0.02, True), (0.001, False)])
def test_the_faster_way_is_taken_and_named(
    trained: Callable[..., Training],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    alone: float,
    is_faster: bool,
) -> None:
    monkeypatch.setattr(probe, "_seconds_together", lambda training: 0.01)
    monkeypatch.setattr(probe, "_seconds_alone", lambda training, module, trainer: alone)
    training, trainer = trained(1e-3, 1e-2), L.Trainer(logger=False, enable_checkpointing=False)
    with caplog.at_level(logging.INFO):
        reason = probe.is_slower(training, training.module, trainer)
    said = " ".join([reason, *caplog.messages])
    assert (reason == "") is is_faster
    assert "10.00 ms" in said
    assert f"{2 * alone / 0.01:.1f} times as fast" in said


def test_dropout_is_a_reason_to_run_alone() -> None:
    data = DigitsDataModule(train_fraction=0.1)
    data.setup()
    task = Classification(data.spec)
    trainer: Any = L.Trainer(logger=False, enable_checkpointing=False)
    for dropout, reason in (
        (0.0, "they keep no last checkpoint"),
        (0.1, "the student has dropout"),
    ):
        student = MLP(data.spec.input_shape, CLASSES, hidden=[4], dropout=dropout)
        module = DistillationModule(student, None, Objective(alpha=0.0), task=task)
        assert _why_not(module, data, trainer).startswith(reason)


def test_divergence_is_that_of_torch() -> None:
    from kd_lightning.utils.divergence import kl_divergence

    z_p, z_q = torch.randn(2, 8, 5).unbind()
    expected = F.kl_div(z_q.log_softmax(-1), z_p.log_softmax(-1), reduction="none", log_target=True)
    assert torch.equal(kl_divergence(z_p, z_q), expected.sum(-1))
