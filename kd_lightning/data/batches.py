"""How samples in memory become batches: splits, their order, their normalisation."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from kd_lightning.data.types import Batch, DataSpec
from kd_lightning.utils.hashing import mixed


class Split(NamedTuple):
    """Samples, N×C×H×W uint8, and their classes, N int64."""

    inputs: Tensor
    target: Tensor

    def take(self, index: Tensor) -> "Split":
        """The samples at ``index``, in that order."""
        return Split(self.inputs[index], self.target[index])

    def to(self, device: torch.device) -> "Split":
        """The same samples on a device."""
        return Split(self.inputs.to(device), self.target.to(device))


class TensorDataset(Dataset[Batch]):
    """A split that is read a whole batch at a time: one indexing instead of B."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split.target)

    def __getitem__(self, index: Tensor) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Batch(self.split.inputs[index], self.split.target[index], index)


class ShuffledBatches(Sampler[Tensor]):
    """Index tensors of one rank's training batches, a new order every epoch.

    The order is a pure function of (seed, epoch), so a resumed run sees what it would
    have seen. Ranks get equal shares; the order is padded from its own start, as
    ``torch.utils.data.DistributedSampler`` does.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.device = rank, world_size, device
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.size / self.world_size) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        share = math.ceil(self.size / self.world_size)
        positions = torch.arange(self.rank, share * self.world_size, self.world_size)
        yield from order[positions % self.size].to(self.device).split(self.batch_size)


class OrderedBatches(Sampler[Tensor]):
    """Index tensors of one rank's evaluation batches: every sample exactly once.

    Each rank gets the same number of batches, so that collective operations meet.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        batches = math.ceil(size / (world_size * batch_size)) * world_size
        self.batches = torch.arange(size).tensor_split(batches)[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches


class Normalizer:
    """The one normalisation of a data set, for teacher and student alike.

    Takes B×C×H×W values of 0…255 in a floating type; works in place.
    """

    def __init__(self, spec: DataSpec) -> None:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (spec.mean, spec.std))
        self.exact = self.ready = (1 / (255 * std), -mean / std)

    def __call__(self, x: Tensor) -> Tensor:
        # kept as they were last needed: a copy a batch would synchronise
        if (x.device, x.dtype) != (self.ready[0].device, self.ready[0].dtype):
            self.ready = (self.exact[0].to(x), self.exact[1].to(x))
        scale, shift = self.ready
        return x.mul_(scale).add_(shift)
