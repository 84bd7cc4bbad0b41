"""Tests of teachers that are made worse on purpose."""

import pytest
import torch
from torch import Tensor

from kd_lightning.losses import permuted_soft_targets, soft_targets
from kd_lightning.losses.controls import permuted

B, C = 3000, 7


@pytest.fixture
def answers() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of student and teacher, labels, indices."""
    generator = torch.Generator().manual_seed(0)
    z_s, z_t = torch.randn(2, B, C, generator=generator, dtype=torch.float64)
    target = torch.randint(C, (B,), generator=generator)
    return z_s, z_t, target, torch.randperm(B, generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_the_target_keeps_its_probability(
    answers: tuple[Tensor, Tensor, Tensor, Tensor], temperature: float
) -> None:
    _, z_t, target, index = answers
    shuffled = permuted(z_t, target, index)
    before, after = ((z / temperature).softmax(1) for z in (z_t, shuffled))
    rows = torch.arange(B)
    torch.testing.assert_close(after[rows, target], before[rows, target])
    torch.testing.assert_close(after.sort(1).values, before.sort(1).values)
    assert not torch.equal(after, before)


def test_the_order_belongs_to_the_sample(answers: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Whatever batch a sample comes in, in whatever epoch: its classes are shuffled alike."""
    _, z_t, target, index = answers
    whole = permuted(z_t, target, index)
    some = torch.randperm(B)[:50]
    assert torch.equal(permuted(z_t[some], target[some], index[some]), whole[some])
    assert not torch.equal(permuted(z_t, target, index + 1), whole)


def test_all_orders_are_as_likely() -> None:
    """Of 4! = 24 orders of four wrong classes each comes about once in 24 samples."""
    samples = 24 * 500
    z = torch.arange(5.0).expand(samples, 5)
    shuffled = permuted(z, torch.full((samples,), 2), torch.arange(samples))
    _, counts = shuffled.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 500) ** 2 / 500).sum() < 49.7  # χ² with 23 degrees, p = 0.001


def test_it_is_the_soft_target_loss_of_the_shuffled_teacher(
    answers: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    z_s, z_t, target, index = answers
    expected = soft_targets(z_s, permuted(z_t, target, index), 4.0)
    assert permuted_soft_targets(z_s, z_t, target, index, 4.0).item() == expected.item()


def test_no_gradient_reaches_the_teacher(answers: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    z_s, z_t, target, index = (x[:8] for x in answers)
    z_t.requires_grad_()
    permuted_soft_targets(z_s.requires_grad_(), z_t, target, index, 2.0).backward()
    assert z_t.grad is None
    assert z_s.grad is not None


def test_two_classes_leave_nothing_to_shuffle() -> None:
    z = torch.randn(20, 2)
    assert torch.equal(permuted(z, torch.randint(2, (20,)), torch.arange(20)), z)
