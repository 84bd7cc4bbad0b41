"""Tests of the contrastive loss, against NumPy by loops."""

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
    """The paper's h and 1 − h, in probabilities."""
    noise = (index.shape[1] - 1) / len(bank)
    total = 0.0
    for anchor, rows in zip(e.detach().numpy(), index.numpy(), strict=True):
        own, *others = (math.exp(anchor @ bank[row].numpy() / temperature) / z for row in rows)
        total -= math.log(own / (own + noise))
        total -= sum(math.log(noise / (p + noise)) for p in others)
    return total / len(e)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_value_is_that_of_the_paper(arguments: Arguments, temperature: float) -> None:
    a = arguments._replace(temperature=temperature)
    expected = numpy_one_way(a.e_s, a.bank_t, a.index, 37.0, temperature)
    expected += numpy_one_way(a.e_t, a.bank_s, a.index, 5.0, temperature)
    value = contrastive(*a)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_defaults_and_normalizers_as_tensors(arguments: Arguments) -> None:
    as_tensors = contrastive(*arguments[:6], torch.tensor(37.0), torch.tensor(5.0))
    assert as_tensors.item() == contrastive(*arguments).item()


def test_both_ways_are_alike(arguments: Arguments) -> None:
    a = arguments
    swapped = a._replace(
        e_s=a.e_t, e_t=a.e_s, bank_s=a.bank_t, bank_t=a.bank_s, normalizer_s=5.0, normalizer_t=37.0
    )
    assert contrastive(*swapped).item() == pytest.approx(contrastive(*a).item(), rel=1e-12)


def test_the_size_of_the_data_may_differ_from_that_of_the_bank(arguments: Arguments) -> None:
    rescaled = arguments._replace(data_size=40, normalizer_s=74.0, normalizer_t=10.0)
    assert contrastive(*rescaled).item() == pytest.approx(contrastive(*arguments).item(), rel=1e-12)


def test_gradcheck_in_both_projections(arguments: Arguments) -> None:
    def loss(e_s: Tensor, e_t: Tensor) -> Tensor:
        return contrastive(*arguments._replace(e_s=e_s, e_t=e_t))

    assert torch.autograd.gradcheck(loss, (arguments.e_s, arguments.e_t))


def test_gradient_reaches_the_projections_not_the_banks(arguments: Arguments) -> None:
    a = arguments._replace(normalizer_s=torch.tensor(37.0, requires_grad=True))
    a.bank_s.requires_grad_()
    a.bank_t.requires_grad_()
    contrastive(*a).backward()
    assert a.bank_s.grad is None
    assert a.bank_t.grad is None
    assert isinstance(a.normalizer_s, Tensor)
    assert a.normalizer_s.grad is None
    for e in (a.e_s, a.e_t):
        assert e.grad is not None
        assert e.grad.abs().amax(1).min() > 1e-3


def test_it_is_least_where_the_own_row_is_and_the_negatives_are_not() -> None:
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
def test_half_precision_is_as_good_as_double(
    arguments: Arguments, dtype: torch.dtype, size: int
) -> None:
    """Also for projections that someone forgot to normalise."""
    lowered = [(size * x.detach()).to(dtype) for x in arguments[:4]]
    e_s, e_t, bank_s, bank_t = lowered
    rest = arguments[4:]
    value = contrastive(e_s.requires_grad_(), e_t, bank_s, bank_t, *rest)
    value.backward()
    exact = contrastive(*(x.detach().double() for x in lowered), *rest)
    assert value.item() == pytest.approx(exact.item(), rel=1e-3)
    assert e_s.grad is not None
    assert e_s.grad.isfinite().all()


def test_autocast_does_not_lower_the_precision(arguments: Arguments) -> None:
    single = [x.detach().float() for x in arguments[:4]]
    expected = contrastive(*single, *arguments[4:]).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrastive(*single, *arguments[4:]).item() == expected


def test_the_partition_is_estimated_from_the_scores(arguments: Arguments) -> None:
    a = arguments
    scores = [
        math.exp(anchor @ a.bank_t[row].numpy() / 0.07)
        for anchor, rows in zip(a.e_s.detach().numpy(), a.index, strict=True)
        for row in rows
    ]
    z = partition_estimate(a.e_s, a.bank_t, a.index)
    assert z.shape == ()
    assert not z.requires_grad
    assert z.item() == pytest.approx(20 * np.mean(scores), rel=1e-12)
    assert partition_estimate(a.e_s, a.bank_t, a.index, temperature=1.0) < z


def test_negatives_are_needed(arguments: Arguments) -> None:
    with pytest.raises(ValueError, match="a negative at least"):
        contrastive(*arguments._replace(index=arguments.index[:, :1]))
