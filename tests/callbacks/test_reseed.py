"""Tests of seeds that depend on seed, epoch and rank alone."""

from types import SimpleNamespace
from typing import Any

import torch

from kd_lightning.callbacks.reseed import ReseedEachEpoch


def drawn(seed: int, epoch: int, rank: int = 0) -> tuple[float, ...]:
    trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank)
    module: Any = None
    ReseedEachEpoch(seed).on_train_epoch_start(trainer, module)
    return tuple(torch.rand(4).tolist())


def test_each_seed_epoch_and_rank_has_its_own_numbers() -> None:
    keys = [(seed, epoch, rank) for seed in (0, 1) for epoch in (0, 1, 2) for rank in (0, 1)]
    assert len({drawn(*key) for key in keys}) == len(keys)


def test_earlier_draws_do_not_matter() -> None:
    first = drawn(seed=3, epoch=2)
    torch.rand(100)
    assert drawn(seed=3, epoch=2) == first
