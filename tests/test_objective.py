"""Tests of the objective: what is summed, with which weights, under which names."""

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses import logit_mse, soft_targets
from kd_lightning.losses.controls import permuted_soft_targets
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


def terms_of(
    objective: Objective, z_s: Tensor, z_t: Tensor | None, target: Tensor
) -> dict[str, Tensor]:
    return objective({"logits": z_s}, None if z_t is None else {"logits": z_t}, target)


def refuse(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
    raise AssertionError("the response loss was computed")


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_loss_is_weighted_sum_of_terms(batch: tuple[Tensor, Tensor, Tensor], alpha: float) -> None:
    z_s, z_t, target = batch
    terms = terms_of(Objective(alpha=alpha, temperature=3.0), z_s, z_t, target)
    hard = -z_s.log_softmax(1)[range(6), target].mean()
    response = soft_targets(z_s, z_t, 3.0)
    torch.testing.assert_close(terms["hard"], hard)
    torch.testing.assert_close(terms["loss"], (1 - alpha) * hard + alpha * response)
    assert set(terms) == ({"loss", "hard", "response"} if alpha else {"loss", "hard"})
    if alpha:  # terms are named before they are weighted
        torch.testing.assert_close(terms["response"], response)


def test_alpha_0_needs_no_teacher(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    z_s, _, target = batch
    objective = Objective(alpha=0.0, response=refuse)
    assert not objective.needs_teacher
    torch.testing.assert_close(
        terms_of(objective, z_s, None, target)["loss"], F.cross_entropy(z_s, target)
    )


def test_response_may_be_any_function_with_a_temperature(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    def scaled_mse(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
        return temperature * F.mse_loss(z_s, z_t)

    z_s, z_t, target = batch
    objective = Objective(alpha=1.0, temperature=7.0, response=scaled_mse)
    assert objective.needs_teacher
    torch.testing.assert_close(
        terms_of(objective, z_s, z_t, target)["loss"], 7 * F.mse_loss(z_s, z_t)
    )


def test_settings_are_the_current_numbers() -> None:
    assert Objective(alpha=0.25, temperature=2.0).settings(0.0) == {
        "alpha": 0.25,
        "temperature": 2.0,
    }


def test_hard_weight_is_independent_of_alpha(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    z_s, z_t, target = batch
    terms = terms_of(Objective(alpha=9.0, hard_weight=0.1, temperature=2.0), z_s, z_t, target)
    expected = 0.1 * F.cross_entropy(z_s, target) + 9 * soft_targets(z_s, z_t, 2.0)
    torch.testing.assert_close(terms["loss"], expected)


def test_response_gets_the_arguments_it_names(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    def plain(z_t: Tensor, z_s: Tensor) -> Tensor:
        return (z_s - 2 * z_t).mean()

    def with_target(z_s: Tensor, z_t: Tensor, target: Tensor) -> Tensor:
        return (z_s - z_t)[range(6), target].mean()

    z_s, z_t, target = batch
    found = terms_of(Objective(alpha=1.0, response=plain), z_s, z_t, target)["response"]
    torch.testing.assert_close(found, (z_s - 2 * z_t).mean())
    found = terms_of(Objective(alpha=1.0, response=with_target), z_s, z_t, target)["response"]
    torch.testing.assert_close(found, (z_s - z_t)[range(6), target].mean())


class Gap(Term):
    """The difference of two scalars."""

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
    assert (terms["near"], terms["far"]) == (8, 21)  # unweighted
    torch.testing.assert_close(terms["loss"], terms["hard"] + 0.5 * 8 + 10 * 21)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"transfer": {"response": Gap("a", "c")}},
            "method.transfer.response: this name is reserved",
        ),
        ({"transfer": {"loss": Gap("a", "c")}}, "method.transfer.loss: this name is reserved"),
        ({"transfer": {"keys": Gap("a", "c")}}, "method.transfer.keys: this name is reserved"),
        (
            {"transfer": {"mine": nn.Linear(2, 2)}},
            "method.transfer.mine is a Linear, not a transfer term",
        ),
        ({"alpha": None}, r"method.alpha must lie in 0…1 .*, got None"),
        (
            {"temperature": "4x"},
            "method.temperature must be a positive number in 1e-15…1e15, got 4x",
        ),
        ({"transfer": {"mine": Gap("a", "c", weight="1k")}}, "transfer.mine.weight .* got 1k"),
        ({"temperature": LearnedTemperature(), "alpha": 0.0}, "needs method.alpha above 0"),
        ({"temperature": LearnedTemperature(), "response": logit_mse}, "takes a temperature"),
    ],
)
def test_invalid_setting_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Objective(**settings)


def test_schedule_may_be_undefined_after_the_training() -> None:
    steps = [4.0, 3.0, 0.0]
    temperature = Objective(temperature=lambda epoch: steps[int(epoch)]).temperature
    assert [temperature(0.5), temperature(1.0)] == [4.0, 3.0]
    with pytest.raises(
        UserError, match=r"method.temperature must be a positive number in 1e-15…1e15, got 0\.0"
    ):
        temperature(2.0)


def test_ensemble_needs_named_layers_and_mean_of_logits() -> None:
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


def test_error_of_a_term_names_it() -> None:
    nets = StudentCNN((1, 8, 8), 4), StudentCNN((1, 8, 8), 4)
    with pytest.raises(UserError, match=r"method\.transfer\.near: StudentCNN has no layer 'foo'"):
        Objective(transfer={"near": Gap("foo", "features")}).build(
            *nets, torch.zeros(2, 1, 8, 8), 4, torch.zeros(2)
        )


def test_term_of_weight_0_is_dropped(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    objective = Objective(alpha=0.0, transfer={"off": Gap("nowhere", "nowhere", weight=0)})
    assert not objective.needs_teacher
    assert (objective.terms, objective.student_paths) == ({}, [])
    assert set(with_terms(objective, batch)) == {"loss", "hard"}
    started = Objective(transfer={"on": Gap("a", "c", weight=linear(0, 1, epochs=2))})
    assert list(started.terms) == ["on"]  # a weight that only starts at 0 is kept


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


def test_learned_temperature_is_known_once_it_has_been_used(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    objective = Objective(temperature=LearnedTemperature(start=0.0))
    assert math.isnan(objective.settings(0.0)["temperature"])
    terms_of(objective, *batch)
    assert objective.settings(0.0)["temperature"] == 11
    assert [name for name, _ in objective.named_parameters()] == ["temperature.theta"]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF, -INF, linear(4, 0, epochs=2)])
def test_temperature_must_be_positive_and_finite(temperature: Any) -> None:
    with pytest.raises(
        UserError, match=r"method\.temperature must be a positive number in 1e-15…1e15, got"
    ):
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


def test_unknown_mean_of_teachers_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.ensemble must be one of probabilities, logits"):
        Objective(ensemble="median")


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_label_smoothing_spreads_a_share_of_each_label(
    batch: tuple[Tensor, Tensor, Tensor], share: float
) -> None:
    z_s, z_t, target = batch
    label = (1 - share) * F.one_hot(target, 4) + share / 4
    expected = -(label * z_s.log_softmax(1)).sum(1).mean()
    found = terms_of(Objective(alpha=0.2, label_smoothing=share), z_s, z_t, target)
    torch.testing.assert_close(found["hard"], expected)
    torch.testing.assert_close(found["loss"], 0.8 * expected + 0.2 * found["response"])


@pytest.mark.parametrize("share", [-0.1, 1.1, NAN])
def test_label_smoothing_must_be_a_share(share: float) -> None:
    with pytest.raises(UserError, match=r"method\.label_smoothing must lie in 0…1, got"):
        Objective(label_smoothing=share)


@pytest.mark.parametrize(
    ("settings", "role"),
    [
        ({}, "student"),
        ({"alpha": 0.0}, "baseline"),
        ({"alpha": 0.0, "label_smoothing": 0.1}, "control: label_smoothing"),
        ({"label_smoothing": 0.1}, "student"),
        ({"response": permuted_soft_targets}, "control: permuted"),
        ({"response": partial(permuted_soft_targets)}, "control: permuted"),
        ({"response": permuted_soft_targets, "alpha": 0.0}, "baseline"),
        ({"alpha": linear(0.0, 0.5, epochs=2)}, "student"),
        ({"alpha": 0.0, "transfer": {"gap": Gap("a", "c")}}, "student"),
        ({"alpha": 0.0, "transfer": {"gap": Gap("a", "c", weight=0)}}, "baseline"),
    ],
)
def test_role_follows_from_what_is_minimised(settings: dict[str, Any], role: str) -> None:
    assert Objective(**settings).role == role


def test_what_needs_the_index_is_refused_without_it(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    def by_index(z_s: Tensor, z_t: Tensor, index: Tensor) -> Tensor:
        return (z_s - z_t)[index].mean()

    class Memory(Gap):
        needs_index = True

    z_s, z_t, target = batch
    with pytest.raises(UserError, match=r"method\.response needs the position of each sample"):
        terms_of(Objective(alpha=1.0, response=by_index), z_s, z_t, target)
    objective = Objective(alpha=0.0, transfer={"memory": Memory("a", "c")})
    outputs = {"logits": z_s, "a": torch.tensor(1.0)}, {"logits": z_t, "c": torch.tensor(1.0)}
    with pytest.raises(UserError, match=r"method\.transfer\.memory needs the position of each"):
        objective(*outputs, target)


def test_teacher_gets_no_gradient(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    z_s, z_t, target = batch
    student, teacher = z_s.clone().requires_grad_(), z_t.clone().requires_grad_()
    terms_of(Objective(), student, teacher, target)["loss"].backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_learned_temperature_is_built_for_a_number_of_classes() -> None:
    assert Objective().is_built
    objective = Objective(temperature=LearnedTemperature())
    assert not objective.is_built
    net = StudentCNN((1, 8, 8), 4)
    objective.build(net, net, torch.zeros(2, 1, 8, 8), 4)
    assert objective.is_built
