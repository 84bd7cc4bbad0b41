"""Schedules, and temperatures that are learned adversarially."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.losses import soft_targets
from kd_lightning.objective import Objective
from kd_lightning.schedules import (
    LearnedTemperature,
    LearnedTemperatures,
    as_schedule,
    constant,
    cosine,
    linear,
)
from kd_lightning.utils.errors import UserError

TARGET = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Return logits of student and teacher, 6×4."""
    z_s, z_t = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).double() * 3
    return z_s, z_t


def test_schedules_have_the_expected_values() -> None:
    assert [constant(3.0)(t) for t in (0, 2.5, math.inf)] == [3, 3, 3]
    assert [linear(10, 2, epochs=4)(t) for t in (0, 1, 2.5, 4, 9, math.inf)] == [10, 8, 5, 2, 2, 2]
    expected = [10, 6 + 4 * math.sqrt(0.5), 6, 2, 2, 2]
    found = [cosine(10, 2, epochs=4)(t) for t in (0, 1, 2, 4, 9, math.inf)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("kind", [linear, cosine])
def test_a_schedule_of_zero_epochs_is_constant(kind: type) -> None:
    assert kind(10, 2, epochs=0)(0.0) == 2
    assert kind(3, 3, epochs=5)(1.7) == pytest.approx(3)


@pytest.mark.parametrize("kind", [linear, cosine])
@pytest.mark.parametrize("epochs", [None, -1, math.nan])
def test_a_schedule_of_unknown_length_is_rejected(kind: type, epochs: float | None) -> None:
    with pytest.raises(UserError, match="a schedule needs a number of epochs ≥ 0"):
        kind(10, 2, epochs=epochs)


@pytest.mark.parametrize("setting", [{"lowest": -5.0}, {"span": 0.0}])
def test_bounds_of_learned_temperatures_must_be_positive(setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"temperature.{next(iter(setting))} must be positive"):
        LearnedTemperature(**setting)


def test_a_number_becomes_a_constant_schedule() -> None:
    assert as_schedule(0.3)(7.0) == 0.3
    falling = linear(1, 0, epochs=2)
    assert as_schedule(falling) is falling


def test_the_learned_temperature_starts_at_the_published_value(
    logits: tuple[Tensor, Tensor],
) -> None:
    temperature = LearnedTemperature()
    assert temperature(*logits, epoch=0.0).item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    assert temperature(*logits, epoch=99.0).item() == pytest.approx(15.62, abs=0.01)


@pytest.mark.parametrize("learned", [LearnedTemperature, LearnedTemperatures])
@pytest.mark.parametrize("extreme", [-80.0, 80.0])
def test_a_learned_temperature_stays_between_its_bounds(
    logits: tuple[Tensor, Tensor], learned: type[LearnedTemperature], extreme: float
) -> None:
    temperature = learned(lowest=2.0, span=5.0, start=extreme)
    temperature.double().build(4)
    found = temperature.double()(*logits, epoch=0.0)
    expected = torch.full_like(found, 2.0 if extreme < 0 else 7.0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("epoch", "strength"), [(0.0, 0.0), (2.5, 0.1464466), (5, 0.5), (30, 1)])
def test_the_gradient_is_reversed_and_scaled(
    logits: tuple[Tensor, Tensor], epoch: float, strength: float
) -> None:
    temperature = LearnedTemperature().double()
    soft_targets(*logits, temperature(*logits, epoch=epoch)).backward()
    theta = temperature.theta.detach().clone().requires_grad_()
    soft_targets(*logits, 1 + 20 * theta.sigmoid()).backward()  # through T² as well
    assert theta.grad is not None
    difference = 1e-5  # the reference gradient itself, by central differences
    high, low = (1 + 20 * (theta.detach() + d).sigmoid() for d in (difference, -difference))
    slope = (soft_targets(*logits, high) - soft_targets(*logits, low)) / (2 * difference)
    torch.testing.assert_close(theta.grad, slope, rtol=1e-6, atol=0)
    torch.testing.assert_close(temperature.theta.grad, -strength * theta.grad)


@pytest.mark.parametrize("learned", [LearnedTemperature, LearnedTemperatures])
def test_one_step_lowers_the_loss_in_the_student_and_raises_it_in_the_temperature(
    logits: tuple[Tensor, Tensor], learned: type[LearnedTemperature]
) -> None:
    torch.manual_seed(0)
    student, z_t = nn.Parameter(logits[0]), logits[1]
    objective = Objective(alpha=1.0, temperature=learned(warm_up=1.0))
    assert isinstance(objective.temperature, LearnedTemperature)
    objective.temperature.build(4)
    objective.double()

    def loss(student: Tensor, objective: Objective) -> Tensor:
        return objective({"logits": student}, {"logits": z_t}, TARGET, epoch=1.0)["loss"]

    before = loss(student, objective)
    z_before, objective_before = student.detach().clone(), copy.deepcopy(objective)
    lr = 1e-5  # small enough for the first order: a step changes the loss by ∓lr·‖gradient‖²
    optimizer = torch.optim.SGD([student, *objective.parameters()], lr=lr)
    before.backward()
    of_student = student.grad.square().sum()
    of_temperature = sum(p.grad.square().sum() for p in objective.parameters())
    optimizer.step()
    lowered, raised = loss(student, objective_before), loss(z_before, objective)
    torch.testing.assert_close((lowered - before).detach(), -lr * of_student, rtol=1e-2, atol=0)
    torch.testing.assert_close((raised - before).detach(), lr * of_temperature, rtol=1e-2, atol=0)


def test_instance_wise_temperatures_come_from_a_network_on_both_logits(
    logits: tuple[Tensor, Tensor],
) -> None:
    torch.manual_seed(0)
    temperature = LearnedTemperatures(hidden=8)
    temperature.build(4)
    temperature.double()
    first = temperature(*logits, epoch=0.0)
    assert first.shape == (6, 1)
    torch.testing.assert_close(first, torch.full_like(first, 1 + 20 / (1 + math.exp(-1))))
    with torch.no_grad():
        temperature.layers[2].weight.normal_()
    found = temperature(*logits, epoch=0.0)
    enter, _, leave = temperature.layers
    both = torch.cat(logits, 1)
    theta = (both @ enter.weight.T + enter.bias).clamp(min=0) @ leave.weight.T + leave.bias
    torch.testing.assert_close(found, 1 + 20 / (1 + torch.exp(-theta)))
    assert found.unique().numel() == 6  # one for each sample


def test_no_gradient_reaches_the_student_through_the_temperatures(
    logits: tuple[Tensor, Tensor],
) -> None:
    z_s, z_t = (z.clone().requires_grad_() for z in logits)
    temperature = LearnedTemperatures()
    temperature.build(4)
    with torch.no_grad():
        temperature.layers[2].weight.normal_()
    temperature.double()(z_s, z_t, epoch=20.0).sum().backward()
    assert z_s.grad is None
    assert z_t.grad is None
    bias = temperature.layers[2].bias  # its gradient: −λ Σ span·σ(θ)(1 − σ(θ)), λ = 1 by now
    share = (temperature(*logits, epoch=20.0).detach() - 1) / 20
    torch.testing.assert_close(bias.grad, -20 * (share * (1 - share)).sum(0))
    assert all(p.grad is not None for p in temperature.parameters())
