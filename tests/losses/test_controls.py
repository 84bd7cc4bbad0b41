"""Controls: the permutation of the teacher's non-target classes."""

import inspect

import pytest
import torch
from torch import Tensor

from kd_lightning.losses import permuted_soft_targets, soft_targets
from kd_lightning.losses.controls import permuted

B, C = 3000, 7


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logits of student and teacher, labels, and sample indices."""
    generator = torch.Generator().manual_seed(0)
    z_s, z_t = torch.randn(2, B, C, generator=generator, dtype=torch.float64)
    target = torch.randint(C, (B,), generator=generator)
    return z_s, z_t, target, torch.randperm(B, generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_target_keeps_its_probability(
    batch: tuple[Tensor, Tensor, Tensor, Tensor], temperature: float
) -> None:
    _, z_t, target, index = batch
    shuffled = permuted(z_t, target, index)
    before, after = ((z / temperature).softmax(1) for z in (z_t, shuffled))
    rows = torch.arange(B)
    torch.testing.assert_close(after[rows, target], before[rows, target])
    torch.testing.assert_close(after.sort(1).values, before.sort(1).values)
    moved = (shuffled != z_t).any(1).double().mean().item()
    assert moved == pytest.approx(1 - 1 / 720, abs=0.003)  # all but the identity, 1 of 6!


def test_permutation_depends_on_the_sample_alone(
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """A sample is permuted identically in every batch; other indices permute differently."""
    _, z_t, target, index = batch
    whole = permuted(z_t, target, index)
    some = torch.randperm(B, generator=torch.Generator().manual_seed(1))[:50]
    assert torch.equal(permuted(z_t[some], target[some], index[some]), whole[some])
    agree = (permuted(z_t, target, index + 1) == whole).all(1).double().mean().item()
    assert agree == pytest.approx(1 / 720, abs=0.003)


def test_all_permutations_are_equally_likely() -> None:
    """Each of the 4! = 24 permutations occurs in about 1 of 24 samples."""
    samples = 24 * 500
    z = torch.arange(5.0).expand(samples, 5)
    shuffled = permuted(z, torch.full((samples,), 2), torch.arange(samples))
    _, counts = shuffled.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 500) ** 2 / 500).sum() < 49.7  # χ² with 23 degrees, p = 0.001


def test_loss_is_soft_targets_of_the_permuted_logits(
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    z_s, z_t, target, index = batch
    expected = soft_targets(z_s, permuted(z_t, target, index), 4.0)
    assert permuted_soft_targets(z_s, z_t, target, index, 4.0).item() == expected.item()


def test_no_gradient_reaches_the_teacher(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    z_s, z_t, target, index = (x[:8] for x in batch)
    z_t.requires_grad_()
    permuted_soft_targets(z_s.requires_grad_(), z_t, target, index, 2.0).backward()
    assert z_t.grad is None
    assert z_s.grad is not None
    p_s, p_t = ((z.detach() / 2).softmax(1) for z in (z_s, permuted(z_t, target, index)))
    torch.testing.assert_close(z_s.grad, 2 * (p_s - p_t) / 8)  # T²·(q − v)/T, mean over 8


def test_two_classes_are_left_unchanged() -> None:
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(permuted(z, torch.arange(20) % 2, torch.arange(20)), z)


def test_the_loss_is_marked_as_a_control() -> None:
    assert permuted_soft_targets.control == "permuted"
    assert not hasattr(soft_targets, "control")
    # The objective passes arguments by name, so the decorator must not hide the signature.
    names = list(inspect.signature(permuted_soft_targets).parameters)
    assert names == ["z_s", "z_t", "target", "index", "temperature"]
