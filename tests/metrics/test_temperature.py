"""Tests of the temperature curves: against autograd, closed forms and limits."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from kd_lightning.metrics.temperature import TEMPERATURES, TemperatureMetric
from kd_lightning.nets.ensemble import mean_probabilities


def curves_of(z_s: Tensor, z_t: Tensor, *sizes: int) -> Tensor:
    """Return the table, K×4, of logits that are given in batches of some sizes."""
    metric = TemperatureMetric()
    for s, t in zip(z_s.split(sizes), z_t.split(sizes), strict=True):
        metric.update(s, partial(mean_probabilities, t))
    return metric.compute()["temperature_curves"].double()


def test_entropy_and_gradient_equal_autograd_and_torchs_distribution() -> None:
    torch.manual_seed(0)
    z_s, z_t = 4 * torch.randn(2, 50, 7, dtype=torch.float64)
    curves = curves_of(z_s, z_t, 30, 20)
    assert curves[:, 0].tolist() == pytest.approx(TEMPERATURES)
    for t, entropy, gradient, _ in curves.tolist()[::4]:
        z = z_s.clone().requires_grad_()
        p_t = (z_t / t).softmax(1)
        kl = (p_t * (p_t.clamp_min(1e-300).log() - (z / t).log_softmax(1))).sum()
        own = torch.autograd.grad(kl, z)[0].norm(dim=1).mean()
        assert gradient == pytest.approx(own.item(), rel=1e-4)
        expected = torch.distributions.Categorical(logits=z_t / t).entropy().mean()
        assert entropy == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def test_distance_from_the_limit_equals_its_definition() -> None:
    torch.manual_seed(1)
    z_s, z_t = 4 * torch.randn(2, 20, 5, dtype=torch.float64)
    centred = [z - z.mean(1, keepdim=True) for z in (z_s, z_t)]
    limit = (centred[0] - centred[1]) / 5
    for t, _, _, distance in curves_of(z_s, z_t, 20).tolist()[::4]:
        gradient = t * ((z_s / t).softmax(1) - (z_t / t).softmax(1))
        expected = (gradient - limit).norm(dim=1).mean() / limit.norm(dim=1).mean()
        assert distance == pytest.approx(expected.item(), rel=1e-4)


def test_curves_have_the_published_limits_for_large_temperatures() -> None:
    torch.manual_seed(0)
    z_s, z_t = 4 * torch.randn(2, 50, 7, dtype=torch.float64)
    _, entropy, gradient, distance = curves_of(z_s, z_t, 50).T
    assert entropy[-1] == pytest.approx(math.log(7), rel=1e-4)
    # six steps are a factor of ten in T: the gradient falls as 1/T², its distance as 1/T
    assert gradient[-7] / gradient[-1] == pytest.approx(100, rel=0.02)
    assert distance[-7] / distance[-1] == pytest.approx(10, rel=0.05)


def test_limit_of_an_ensemble_is_that_of_its_mean_logits() -> None:
    torch.manual_seed(0)
    z_s, z_t = torch.randn(20, 5), torch.randn(20, 3, 5)
    ensemble, single = curves_of(z_s, z_t, 20), curves_of(z_s, z_t.mean(1), 20)
    torch.testing.assert_close(ensemble[-1, 1:3], single[-1, 1:3], rtol=1e-3, atol=1e-7)
