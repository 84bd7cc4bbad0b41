"""Tests of linear probes: the solver against scikit-learn, and the network."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from kd_lightning.nets.mlp import MLP
from kd_lightning.nets.probe import LinearProbe, linear_probe, logistic_regression, solve
from kd_lightning.utils.errors import UserError


@pytest.fixture
def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """300 samples of 8 dimensions with different scales, in three classes."""
    random = torch.Generator().manual_seed(0)
    target = torch.arange(300) % 3
    centres = torch.randn(3, 8, generator=random)
    x = centres[target] + torch.randn(300, 8, generator=random)
    return x * torch.logspace(-2, 2, 8) + 5, target


@pytest.mark.parametrize("strength", [1e-1, 1e-3])
def test_solution_equals_that_of_scikit_learn(
    samples: tuple[torch.Tensor, torch.Tensor], strength: float
) -> None:
    x, target = samples
    x = ((x - x.mean(0)) / x.std(0)).double()
    zero = torch.zeros(3, 8, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    weight, bias = logistic_regression(x, target, *zero, strength)
    theirs = LogisticRegression(C=1 / (strength * len(x)), tol=1e-9, max_iter=1000)
    theirs.fit(x.numpy(), target.numpy())
    np.testing.assert_allclose(weight.numpy(), theirs.coef_, atol=2e-3)
    mine = (x @ weight.T + bias).softmax(1).numpy()
    np.testing.assert_allclose(mine, theirs.predict_proba(x.numpy()), atol=1e-3)


def test_head_includes_the_standardisation(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, target = samples
    head = nn.Linear(8, 3)
    strength = solve(x, target, head)
    scaled = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=1 / (strength * len(x)), tol=1e-9, max_iter=1000)
    theirs.fit(scaled.numpy(), target.numpy())
    mine = head(x).softmax(1).detach().numpy()
    np.testing.assert_allclose(mine, theirs.predict_proba(scaled.numpy()), atol=1e-2)


def test_only_the_head_is_trained() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 7))
    probe = LinearProbe(net, (1, 4, 4), 3).train()
    assert {n for n, p in probe.named_parameters() if p.requires_grad} == {
        "head.weight",
        "head.bias",
    }
    assert not probe.backbone.training
    x = torch.randn(5, 1, 4, 4)
    assert torch.equal(probe.embed(x), net[:3](x))
    assert probe(x).shape == (5, 3)


def test_factory_and_its_error() -> None:
    assert isinstance(linear_probe((1, 8, 8), 4, MLP), LinearProbe)
    with pytest.raises(UserError, match=r"teacher.head must be linear_probe, .*; got mlp"):
        linear_probe((1, 8, 8), 4, MLP, head="mlp")
