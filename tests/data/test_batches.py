"""Tests of batches: the samples of each rank, their order, and their normalisation."""

import math

import pytest
import torch
from torch.utils.data import DistributedSampler

from kd_lightning.data.batches import (
    Normalizer,
    OrderedBatches,
    ShuffledBatches,
    Split,
    TensorDataset,
)
from kd_lightning.data.types import ImageSpec

SIZES = [  # samples, batch size, ranks
    (100, 16, 1),
    (96, 16, 1),
    (101, 16, 2),
    (7, 3, 3),
    (5, 1, 2),
    (3, 8, 4),
    (1, 1, 1),
    (97, 200, 3),
]


def shuffled(size: int, batch: int, ranks: int, seed: int = 0, epoch: int = 0) -> list[list[int]]:
    """Return the indices of each rank."""
    samplers = [ShuffledBatches(size, batch, seed, rank, ranks) for rank in range(ranks)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [torch.cat(list(sampler)).tolist() for sampler in samplers]


@pytest.mark.parametrize(("size", "batch", "ranks"), SIZES)
def test_shuffled_ranks_get_as_many_samples_as_in_torch(size: int, batch: int, ranks: int) -> None:
    shares = shuffled(size, batch, ranks)
    for rank, share in enumerate(shares):
        assert len(share) == len(DistributedSampler(range(size), ranks, rank))
    everything = [i for share in shares for i in share]
    assert set(everything) == set(range(size))
    assert len(everything) - size == -size % ranks  # no overlap beyond the padding
    assert max(everything.count(i) for i in set(everything)) <= math.ceil(ranks / size) + 1


@pytest.mark.parametrize(("size", "batch", "ranks"), SIZES)
def test_shuffled_batches_are_full_except_the_last(size: int, batch: int, ranks: int) -> None:
    for rank in range(ranks):
        sampler = ShuffledBatches(size, batch, 0, rank, ranks)
        lengths = [len(b) for b in sampler]
        assert len(lengths) == len(sampler)
        assert all(length == batch for length in lengths[:-1])
        assert 1 <= lengths[-1] <= batch


def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {(s, e): shuffled(100, 16, 1, s, e)[0] for s in range(3) for e in range(3)}
    assert len({tuple(order) for order in orders.values()}) == 9
    torch.manual_seed(1234)
    assert shuffled(100, 16, 1, seed=2, epoch=1)[0] == orders[2, 1]
    assert shuffled(100, 7, 1, seed=2, epoch=1)[0] == orders[2, 1]  # nor on the batch size


def test_ranks_take_turns_in_one_common_order() -> None:
    whole = shuffled(101, 16, 1, epoch=5)[0]
    first, second = shuffled(101, 16, 2, epoch=5)
    assert first == whole[::2]
    assert second == [*whole[1::2], whole[0]]


@pytest.mark.parametrize(("size", "batch", "ranks"), SIZES)
def test_ordered_batches_contain_each_sample_once(size: int, batch: int, ranks: int) -> None:
    shares = [list(OrderedBatches(size, batch, rank, ranks)) for rank in range(ranks)]
    everything = torch.cat([b for share in shares for b in share])
    assert sorted(everything.tolist()) == list(range(size))
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == len(OrderedBatches(size, batch, 0, ranks))
    assert max(len(b) for share in shares for b in share) <= batch
    assert len(shares[0]) == math.ceil(size / (ranks * batch))  # no more batches than needed


def test_ordered_batches_of_one_rank_are_in_order() -> None:
    assert torch.cat(list(OrderedBatches(50, 8))).tolist() == list(range(50))


def test_dataset_returns_a_batch_for_an_index_tensor() -> None:
    split = Split(torch.arange(24, dtype=torch.uint8).view(6, 1, 2, 2), torch.arange(6) * 10)
    batch = TensorDataset(split)[torch.tensor([4, 0, 4])]
    assert batch.inputs[:, 0, 0, 0].tolist() == [16, 0, 16]
    assert batch.target.tolist() == [40, 0, 40]
    assert batch.index.tolist() == [4, 0, 4]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_normalizer_applies_mean_and_std_of_each_channel(dtype: torch.dtype) -> None:
    spec = ImageSpec((2, 1, 256), 10, mean=(0.25, 0.5), std=(0.125, 0.4))
    x = torch.arange(256.0, dtype=torch.float64).repeat(3, 2, 1, 1)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 2, 1, 1) for v in spec[2:4])
    found = Normalizer(spec)(x.to(dtype, copy=True))
    assert found.dtype == dtype
    tolerance = {torch.bfloat16: 0.05}.get(dtype, 5e-6)
    torch.testing.assert_close(found.double(), (x / 255 - mean) / std, rtol=0, atol=tolerance)


def test_normalizer_is_exact_after_a_use_in_low_precision() -> None:
    spec = ImageSpec((1, 4, 4), 10, mean=(0.1307,), std=(0.3081,))
    x = torch.linspace(0, 255, 16).view(1, 1, 4, 4)
    normalize = Normalizer(spec)
    normalize(x.bfloat16())
    torch.testing.assert_close(normalize(x.clone()), Normalizer(spec)(x.clone()), rtol=0, atol=0)
