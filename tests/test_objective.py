"""Tests of the objective: what is summed, with which weights, under which names."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses import soft_targets
from kd_lightning.objective import Objective


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


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_a_temperature_must_be_positive_and_finite(temperature: float) -> None:
    with pytest.raises(UserError, match=r"method\.temperature.*got"):
        Objective(temperature=temperature)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan"), float("inf")])
def test_alpha_must_lie_in_0_to_1(alpha: float) -> None:
    with pytest.raises(UserError, match=r"method\.alpha.*got"):
        Objective(alpha=alpha)
