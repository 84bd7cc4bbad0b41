"""Tests of the losses on what the teacher answers, against NumPy in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_lightning.losses import soft_targets

Logits = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture
def logits() -> Logits:
    def draw(samples: int, classes: int = 10) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(samples)
        z_s, z_t = 3 * torch.randn(2, samples, classes, generator=generator, dtype=torch.float64)
        return z_s.requires_grad_(), z_t + 1

    return draw


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def centred(z: np.ndarray) -> np.ndarray:
    return z - z.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0, 20.0])
def test_soft_targets_are_the_divergence_of_the_paper(
    logits: Logits, samples: int, temperature: float
) -> None:
    z_s, z_t = logits(samples)
    q, v = (softmax(z.detach().numpy() / temperature) for z in (z_s, z_t))
    expected = temperature**2 * (v * np.log(v / q)).sum(axis=1).mean()
    loss = soft_targets(z_s, z_t, temperature)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_soft_targets_pass_gradcheck_in_the_student_and_the_temperature(logits: Logits) -> None:
    z_s, z_t = logits(3, classes=4)
    temperature = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, t: soft_targets(z, z_t, t), (z_s, temperature))


def test_soft_targets_tend_to_the_distance_of_centred_logits(logits: Logits) -> None:
    z_s, z_t = logits(6)
    difference = centred(z_s.detach().numpy()) - centred(z_t.numpy())
    limit = 0.5 * (difference**2).sum(axis=1).mean() / z_s.shape[1]
    errors = [abs(soft_targets(z_s, z_t, t).item() / limit - 1) for t in (100.0, 1000.0)]
    assert errors[1] < 1e-3
    assert errors[1] < errors[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_without_t_squared_is_q_minus_v_over_t(
    logits: Logits, temperature: float
) -> None:
    z_s, z_t = logits(5)
    (soft_targets(z_s, z_t, temperature) / temperature**2).backward()
    assert z_s.grad is not None
    q, v = (softmax(z.detach().numpy() / temperature) for z in (z_s, z_t))
    np.testing.assert_allclose(z_s.grad.numpy(), (q - v) / temperature / 5, atol=1e-15, rtol=1e-10)


def test_at_high_temperature_the_gradient_is_that_of_matching_logits(logits: Logits) -> None:
    z_s, z_t = logits(5)
    temperature = 1e4
    (soft_targets(z_s, z_t, temperature) / temperature**2).backward()
    assert z_s.grad is not None
    difference = centred(z_s.detach().numpy()) - centred(z_t.numpy())
    limit = difference / (z_s.shape[1] * temperature**2) / 5
    error = np.linalg.norm(z_s.grad.numpy() - limit) / np.linalg.norm(limit)
    assert error < 1e-3


def test_no_gradient_reaches_the_teacher(logits: Logits) -> None:
    z_s, z_t = logits(4)
    z_t.requires_grad_()
    soft_targets(z_s, z_t, 5.0).backward()
    assert z_t.grad is None
    assert z_s.grad is not None
    assert z_s.grad.abs().max() > 1e-3


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(logits: Logits) -> None:
    z_s, _ = logits(4)
    loss = soft_targets(z_s, z_s.detach().clone(), 3.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert z_s.grad is not None
    assert z_s.grad.abs().max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("samples", [1, 2048])
def test_soft_targets_stay_finite_in_half_precision(
    dtype: torch.dtype, temperature: float, samples: int
) -> None:
    z_t = torch.full((samples, 10), -100.0)
    z_t[:, 0] = 100
    exact = soft_targets(-z_t.double(), z_t.double(), temperature)
    z_s = (-z_t).to(dtype).requires_grad_()
    loss = soft_targets(z_s, z_t.to(dtype), temperature)
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert z_s.grad is not None
    assert z_s.grad.isfinite().all()
