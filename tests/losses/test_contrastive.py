"""Contrastive loss: compared with NumPy loops in float64."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses import contrastive, partition_estimate


class Arguments(NamedTuple):
    e_s: Tensor
    e_t: Tensor
    bank_s: Tensor
    bank_t: Tensor
    index: Tensor
    data_size: int = 20
    normalizer_s: float | Tensor = 37.0
    normalizer_t: float | Tensor = 5.0
    temperature: float = 0.07


@pytest.fixture
def arguments() -> Arguments:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3 + 3 + 20 + 20, 4, generator=generator, dtype=torch.float64)
    e_s, e_t, bank_s, bank_t = F.normalize(rows).split([3, 3, 20, 20])
    index = torch.stack([torch.randperm(20, generator=generator)[:6] for _ in e_s])
    return Arguments(
        e_s.clone().requires_grad_(), e_t.clone().requires_grad_(), bank_s, bank_t, index
    )


def numpy_one_way(e: Tensor, bank: Tensor, index: Tensor, z: float, temperature: float) -> float:
    """Compute one direction from the paper's h and 1 − h, in probabilities."""
    noise = (index.shape[1] - 1) / len(bank)
    total = 0.0
    for anchor, rows in zip(e.detach().numpy(), index.numpy(), strict=True):
        own, *others = (math.exp(anchor @ bank[row].numpy() / temperature) / z for row in rows)
        total -= math.log(own / (own + noise))
        total -= sum(math.log(noise / (p + noise)) for p in others)
    return total / len(e)


def numpy_gradient(e: Tensor, bank: Tensor, index: Tensor, z: float) -> np.ndarray:
    """Compute the gradient of one direction in e by the chain rule.

    The own row contributes −(1 − h)·b/τ, each negative h·b/τ.
    """
    noise, rows = (index.shape[1] - 1) / len(bank), bank.detach().numpy()[index.numpy()]
    p = np.exp((rows * e.detach().numpy()[:, None]).sum(-1) / 0.07) / z
    h = p / (p + noise)
    h[:, 0] -= 1
    return (h[..., None] * rows).sum(1) / 0.07 / len(e)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_value_matches_the_paper(arguments: Arguments, temperature: float) -> None:
    a = arguments._replace(temperature=temperature)
    expected = numpy_one_way(a.e_s, a.bank_t, a.index, 37.0, temperature)
    expected += numpy_one_way(a.e_t, a.bank_s, a.index, 5.0, temperature)
    value = contrastive(*a)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_normalizers_may_be_tensors(arguments: Arguments) -> None:
    as_tensors = contrastive(*arguments[:6], torch.tensor(37.0), torch.tensor(5.0))
    assert as_tensors.item() == contrastive(*arguments).item()


def test_swapping_student_and_teacher_leaves_the_loss_unchanged(arguments: Arguments) -> None:
    a = arguments
    swapped = a._replace(
        e_s=a.e_t, e_t=a.e_s, bank_s=a.bank_t, bank_t=a.bank_s, normalizer_s=5.0, normalizer_t=37.0
    )
    assert contrastive(*swapped).item() == pytest.approx(contrastive(*a).item(), rel=1e-12)


def test_data_size_and_normalizer_scale_together(arguments: Arguments) -> None:
    rescaled = arguments._replace(data_size=40, normalizer_s=74.0, normalizer_t=10.0)
    assert contrastive(*rescaled).item() == pytest.approx(contrastive(*arguments).item(), rel=1e-12)


def test_gradient_matches_finite_differences(arguments: Arguments) -> None:
    def loss(e_s: Tensor, e_t: Tensor) -> Tensor:
        return contrastive(*arguments._replace(e_s=e_s, e_t=e_t))

    assert torch.autograd.gradcheck(loss, (arguments.e_s, arguments.e_t))


def test_gradient_reaches_the_projections_but_not_the_banks(arguments: Arguments) -> None:
    a = arguments._replace(normalizer_s=torch.tensor(37.0, requires_grad=True))
    a.bank_s.requires_grad_()
    a.bank_t.requires_grad_()
    contrastive(*a).backward()
    assert a.bank_s.grad is None
    assert a.bank_t.grad is None
    assert isinstance(a.normalizer_s, Tensor)
    assert a.normalizer_s.grad is None
    for e, bank, z in ((a.e_s, a.bank_t, 37.0), (a.e_t, a.bank_s, 5.0)):
        assert e.grad is not None
        np.testing.assert_allclose(e.grad, numpy_gradient(e, bank, a.index, z), rtol=1e-10)


def test_minimum_lies_at_the_own_row_opposite_to_the_negative() -> None:
    bank = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    index = torch.tensor([[0, 1]])
    turn = torch.linspace(-math.pi, math.pi, 101, dtype=torch.float64).requires_grad_()
    anchors = torch.stack([turn.cos(), turn.sin()], dim=1)
    losses = torch.stack(
        [contrastive(e[None], bank[:1], bank, bank, index, 2, 2.0, 2.0, 0.5) for e in anchors]
    )
    losses.sum().backward()
    assert turn.grad is not None
    assert losses.argmin() == 50
    assert abs(turn.grad[50]) < 1e-14
    assert (turn.grad[51:-1] > 0).all()
    assert (turn.grad[1:50] < 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 100])
def test_half_precision_matches_float64(
    arguments: Arguments, dtype: torch.dtype, size: int
) -> None:
    """Also for projections of length 100, where exp(e·b/τ) would overflow."""
    lowered = [(size * x.detach()).to(dtype) for x in arguments[:4]]
    e_s, e_t, bank_s, bank_t = lowered
    rest = arguments[4:]
    value = contrastive(e_s.requires_grad_(), e_t, bank_s, bank_t, *rest)
    value.backward()
    double = e_s.detach().double().requires_grad_()
    exact = contrastive(double, *(x.double() for x in lowered[1:]), *rest)
    exact.backward()
    assert value.item() == pytest.approx(exact.item(), rel=1e-3)
    assert e_s.grad is not None
    torch.testing.assert_close(e_s.grad.double(), double.grad, rtol=0.02, atol=0.02)


def test_autocast_leaves_the_value_unchanged(arguments: Arguments) -> None:
    single = [x.detach().float() for x in arguments[:4]]
    expected = contrastive(*single, *arguments[4:]).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrastive(*single, *arguments[4:]).item() == expected


def test_partition_estimate_is_n_times_the_mean_score(arguments: Arguments) -> None:
    a = arguments
    products = [
        anchor @ a.bank_t[row].numpy()
        for anchor, rows in zip(a.e_s.detach().numpy(), a.index, strict=True)
        for row in rows
    ]
    for settings, temperature in (({}, 0.07), ({"temperature": 1.0}, 1.0)):
        z = partition_estimate(a.e_s, a.bank_t, a.index, **settings)
        assert z.shape == ()
        assert not z.requires_grad
        expected = 20 * np.mean([math.exp(product / temperature) for product in products])
        assert z.item() == pytest.approx(expected, rel=1e-12)


def test_an_index_without_negatives_is_rejected(arguments: Arguments) -> None:
    with pytest.raises(ValueError, match=r"index has shape \(3, 1\), which leaves no negatives"):
        contrastive(*arguments._replace(index=arguments.index[:, :1]))
