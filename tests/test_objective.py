"""Tests of the objective: what is summed, with which weights, under which names."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses import logit_mse, soft_targets
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.nets.ensemble import Ensemble
from kd_lightning.objective import Objective
from kd_lightning.schedules import LearnedTemperature, cosine, linear
from kd_lightning.transfer.term import Term
from kd_lightning.utils.errors import UserError


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_s, z_t = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    return z_s, z_t, torch.tensor([0, 1, 2, 3, 0, 1])


def asked(
    objective: Objective, z_s: Tensor, z_t: Tensor | None, target: Tensor
) -> dict[str, Tensor]:
    return objective({"logits": z_s}, None if z_t is None else {"logits": z_t}, target)


def refuse(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
    raise AssertionError("the response loss was asked")


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_the_loss_is_the_weighted_sum_of_its_terms(
    batch: tuple[Tensor, Tensor, Tensor], alpha: float
) -> None:
    z_s, z_t, target = batch
    terms = asked(Objective(alpha=alpha, temperature=3.0), z_s, z_t, target)
    hard = -z_s.log_softmax(1)[range(6), target].mean()
    response = soft_targets(z_s, z_t, 3.0)
    torch.testing.assert_close(terms["hard"], hard)
    torch.testing.assert_close(terms["loss"], (1 - alpha) * hard + alpha * response)
    assert set(terms) == ({"loss", "hard", "response"} if alpha else {"loss", "hard"})
    if alpha:  # terms are named before they are weighted
        torch.testing.assert_close(terms["response"], response)


def test_alpha_0_never_needs_the_teacher(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    z_s, _, target = batch
    objective = Objective(alpha=0.0, response=refuse)
    assert not objective.needs_teacher
    torch.testing.assert_close(
        asked(objective, z_s, None, target)["loss"], F.cross_entropy(z_s, target)
    )


def test_the_response_is_any_loss_and_is_told_the_temperature(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    def scaled_mse(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
        return temperature * F.mse_loss(z_s, z_t)

    z_s, z_t, target = batch
    objective = Objective(alpha=1.0, temperature=7.0, response=scaled_mse)
    assert objective.needs_teacher
    torch.testing.assert_close(asked(objective, z_s, z_t, target)["loss"], 7 * F.mse_loss(z_s, z_t))


def test_settings_are_what_is_logged() -> None:
    assert Objective(alpha=0.25, temperature=2.0).settings(0.0) == {
        "alpha": 0.25,
        "temperature": 2.0,
    }


def test_the_labels_may_have_a_weight_of_their_own(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    z_s, z_t, target = batch
    terms = asked(Objective(alpha=9.0, hard_weight=0.1, temperature=2.0), z_s, z_t, target)
    expected = 0.1 * F.cross_entropy(z_s, target) + 9 * soft_targets(z_s, z_t, 2.0)
    torch.testing.assert_close(terms["loss"], expected)


def test_a_response_is_given_what_it_names(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    def plain(z_t: Tensor, z_s: Tensor) -> Tensor:
        return (z_s - 2 * z_t).mean()

    def with_target(z_s: Tensor, z_t: Tensor, target: Tensor) -> Tensor:
        return (z_s - z_t)[range(6), target].mean()

    z_s, z_t, target = batch
    found = asked(Objective(alpha=1.0, response=plain), z_s, z_t, target)["response"]
    torch.testing.assert_close(found, (z_s - 2 * z_t).mean())
    found = asked(Objective(alpha=1.0, response=with_target), z_s, z_t, target)["response"]
    torch.testing.assert_close(found, (z_s - z_t)[range(6), target].mean())


class Gap(Term):
    """The difference of two numbers that networks give."""

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor) -> Tensor:
        return (f_s[0] - f_t[0]).abs() + index.sum()


def with_terms(objective: Objective, batch: tuple[Tensor, Tensor, Tensor], epoch: float = 0.0):
    z_s, z_t, target = batch
    student = {"logits": z_s, "a": torch.tensor(7.0), "b": torch.tensor(20.0)}
    teacher = {"logits": z_t, "c": torch.tensor(2.0)}
    return objective(student, teacher, target, torch.tensor([1, 2]), epoch)


def test_transfer_terms_are_summed_by_their_weights(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    transfer = {"near": Gap("a", "c", weight=0.5), "far": Gap("b", "c", weight=10)}
    objective = Objective(alpha=0.0, transfer=transfer)
    assert objective.needs_teacher
    assert (objective.student_paths, objective.teacher_paths) == (["a", "b"], ["c"])
    terms = with_terms(objective, batch)
    assert list(terms) == ["loss", "hard", "near", "far"]
    assert (terms["near"], terms["far"]) == (8, 21)  # as they are, without their weights
    torch.testing.assert_close(terms["loss"], terms["hard"] + 0.5 * 8 + 10 * 21)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"transfer": {"response": Gap("a", "c")}},
            "transfer.response: a term cannot be called so",
        ),
        ({"transfer": {"loss": Gap("a", "c")}}, "transfer.loss: a term cannot be called so"),
        ({"transfer": {"keys": Gap("a", "c")}}, "transfer.keys: a term cannot be called so"),
        ({"transfer": {"mine": nn.Linear(2, 2)}}, "transfer.mine is a Linear, no transfer term"),
        ({"alpha": None}, r"method.alpha must lie in 0…1 .*, got None"),
        ({"temperature": "4x"}, "method.temperature must be a positive number, got 4x"),
        ({"transfer": {"mine": Gap("a", "c", weight="1k")}}, "transfer.mine.weight .* got 1k"),
        ({"temperature": LearnedTemperature(), "alpha": 0.0}, "needs method.alpha above 0"),
        ({"temperature": LearnedTemperature(), "response": logit_mse}, "takes a temperature"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Objective(**settings)


def test_a_function_of_ones_own_need_not_reach_beyond_the_training() -> None:
    steps = [4.0, 3.0, 0.0]
    temperature = Objective(temperature=lambda epoch: steps[int(epoch)]).temperature
    assert [temperature(0.5), temperature(1.0)] == [4.0, 3.0]
    with pytest.raises(UserError, match=r"method.temperature must be a positive number, got 0\.0"):
        temperature(2.0)


def test_what_only_one_teacher_can_give_is_not_asked_of_several() -> None:
    nets = StudentCNN((1, 8, 8), 4), Ensemble([StudentCNN((1, 8, 8), 4)] * 2)
    about = (torch.zeros(2, 1, 8, 8), 4, torch.zeros(2))
    learned = {"temperature": LearnedTemperature()}
    with pytest.raises(
        UserError, match=r"transfer.near: .* method.transfer.near.teacher=members.0"
    ):
        Objective(transfer={"near": Gap()}).build(*nets, *about)
    with pytest.raises(UserError, match=r"method\.ensemble=logits"):
        Objective(**learned).build(*nets, *about)
    Objective(ensemble="logits", **learned).build(*nets, *about)
    Objective(transfer={"near": Gap(teacher="members.1.features")}).build(*nets, *about)


def test_an_error_of_a_term_names_it() -> None:
    nets = StudentCNN((1, 8, 8), 4), StudentCNN((1, 8, 8), 4)
    with pytest.raises(UserError, match=r"method\.transfer\.near: StudentCNN has no layer 'foo'"):
        Objective(transfer={"near": Gap("foo", "features")}).build(
            *nets, torch.zeros(2, 1, 8, 8), 4, torch.zeros(2)
        )


def test_a_term_of_weight_0_is_not_there(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    objective = Objective(alpha=0.0, transfer={"off": Gap("nowhere", "nowhere", weight=0)})
    assert not objective.needs_teacher
    assert (objective.terms, objective.student_paths) == ({}, [])
    assert set(with_terms(objective, batch)) == {"loss", "hard"}
    started = Objective(transfer={"on": Gap("a", "c", weight=linear(0, 1, epochs=2))})
    assert list(started.terms) == ["on"]  # one that begins at 0 is


def test_every_number_may_be_a_schedule(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    objective = Objective(
        alpha=linear(0.0, 0.8, epochs=4),
        temperature=cosine(9.0, 1.0, epochs=4),
        transfer={"gap": Gap("a", "c", weight=linear(0, 6, epochs=3))},
    )
    z_s, z_t, target = batch
    for epoch, alpha, temperature, weight in [(0, 0, 9, 0), (2, 0.4, 5, 4), (40, 0.8, 1, 6)]:
        expected = {"alpha": alpha, "temperature": temperature, "weight_gap": weight}
        assert objective.settings(epoch) == pytest.approx(expected)
        hard, response = F.cross_entropy(z_s, target), soft_targets(z_s, z_t, temperature)
        loss = with_terms(objective, batch, epoch)["loss"]
        torch.testing.assert_close(loss, (1 - alpha) * hard + alpha * response + weight * 8)


def test_a_learned_temperature_is_logged_once_it_has_been_used(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    objective = Objective(temperature=LearnedTemperature(start=0.0))
    assert math.isnan(objective.settings(0.0)["temperature"])
    asked(objective, *batch)
    assert objective.settings(0.0)["temperature"] == 11
    assert [name for name, _ in objective.named_parameters()] == ["temperature.theta"]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF, -INF, linear(4, 0, epochs=2)])
def test_a_temperature_must_be_positive_and_finite(temperature: Any) -> None:
    with pytest.raises(UserError, match=r"method\.temperature must be a positive number, got"):
        Objective(temperature=temperature)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, NAN, INF, linear(0, 1.5, epochs=2)])
def test_alpha_must_lie_in_0_to_1(alpha: Any) -> None:
    with pytest.raises(UserError, match=r"method\.alpha must lie in 0…1 \(.*\), got"):
        Objective(alpha=alpha)


@pytest.mark.parametrize("wrong", [-0.01, NAN, INF, linear(1, -1, epochs=2)])
def test_other_weights_must_be_at_least_0(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"method\.hard_weight must be at least 0 \(.*\), got"):
        Objective(hard_weight=wrong)
    with pytest.raises(UserError, match=r"method\.alpha must be at least 0"):
        Objective(alpha=wrong, hard_weight=1.0)
    with pytest.raises(UserError, match=r"method\.transfer\.gap\.weight must be at least 0"):
        Objective(transfer={"gap": Gap("a", "c", weight=wrong)})


def test_an_unknown_mean_of_teachers_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.ensemble must be one of probabilities, logits"):
        Objective(ensemble="median")
