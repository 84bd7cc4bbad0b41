"""Splits of samples, the order of their batches, and their normalisation."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kd_lightning.data.stored import StoredImages
from kd_lightning.data.types import Batch, ImageSpec
from kd_lightning.utils.hashing import mixed

NEARBY = 8  # shards that are read at the same time, in random order


class Split(NamedTuple):
    """Samples of one split.

    Attributes:
        inputs: N×C×H×W, uint8, in memory or on disk.
        target: class of each sample, N, int64.
    """

    inputs: Tensor | StoredImages
    target: Tensor

    def take(self, index: Tensor) -> "Split":
        """Return the samples at ``index``, in that order."""
        x = self.inputs
        # Images on disk are chosen, not read.
        chosen = x.take(index) if isinstance(x, StoredImages) else x[index]
        return Split(chosen, self.target[index])

    def to(self, device: torch.device) -> "Split":
        """Return the samples on a device."""
        return Split(self.inputs.to(device), self.target.to(device))


class TensorDataset(Dataset[Batch]):
    """A split that is read a whole batch at a time.

    Args:
        split: the samples.
    """

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split.target)

    # The index is a tensor, not an integer: one gather per batch replaces B lookups and the
    # collation of B samples.
    def __getitem__(self, index: Tensor) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Batch(self.split.inputs[index], self.split.target[index], index)


class TrainingBatches(Sampler[Tensor]):
    """Index tensors of one rank's training batches, in a new order every epoch.

    The order is a pure function of the seed and the epoch, so a resumed run continues with the
    batches of an uninterrupted one.
    """

    epoch = 0
    start = 0  # number of batches to skip, in one epoch only

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        start, self.start = self.start, 0
        yield from islice(self.batches(), start, None)

    def batches(self) -> Iterator[Tensor]:
        """Yield all batches of the epoch."""
        raise NotImplementedError


class ShuffledBatches(TrainingBatches):
    """Batches drawn from all samples without replacement.

    All ranks get the same number of samples; the order is padded with its own first samples, as
    ``torch.utils.data.DistributedSampler`` does.

    Args:
        size: number of samples, N, or the positions of those to draw from.
        batch_size: samples per batch and rank, B.
        seed: determines the orders of all epochs.
        rank: index of this process.
        world_size: number of processes.
        device: device of the index tensors; None for the CPU.
        shard: shard of each sample of the split, if they are stored in shards.
    """

    def __init__(
        self,
        size: int | Tensor,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        shard: Tensor | None = None,
    ) -> None:
        self.among = size if isinstance(size, Tensor) else None
        self.size = len(size) if isinstance(size, Tensor) else size
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size, self.device = rank, world_size, device
        self.shard = shard

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.size / self.world_size) / self.batch_size)

    def batches(self) -> Iterator[Tensor]:
        # A generator of its own, always on the CPU: the global one depends on what the networks
        # have drawn, and a GPU's permutation differs from the CPU's.
        generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        order = order if self.among is None else self.among[order]
        order = near(order, self.shard, generator)
        share = math.ceil(self.size / self.world_size)
        # The ranks take turns in one common order. Its tail wraps around to its start, so that
        # all ranks run equally many steps; DDP would wait forever for a missing one.
        positions = torch.arange(self.rank, share * self.world_size, self.world_size)
        yield from order[positions % self.size].to(self.device).split(self.batch_size)


class MixedBatches(TrainingBatches):
    """Training batches of labelled and unlabelled samples in a fixed ratio.

    An epoch has every unlabelled sample once; the labelled ones are repeated as often as it takes.

    Args:
        labelled: positions of the labelled samples; not empty.
        unlabelled: batches of the others.
        count: number of labelled samples to add to each of them.
    """

    def __init__(self, labelled: Tensor, unlabelled: ShuffledBatches, count: int) -> None:
        self.labelled, self.unlabelled, self.count = labelled, unlabelled, count

    def __len__(self) -> int:
        return len(self.unlabelled)

    def batches(self) -> Iterator[Tensor]:
        others = self.unlabelled
        others.set_epoch(self.epoch)
        needed = len(self) * self.count * others.world_size
        # 1 at the end: not the order of the unlabelled samples
        generator = torch.Generator().manual_seed(mixed(others.seed, self.epoch, 1))
        rounds = math.ceil(needed / len(self.labelled))
        orders = [torch.randperm(len(self.labelled), generator=generator) for _ in range(rounds)]
        found = [near(self.labelled[order], others.shard, generator) for order in orders]
        mine = torch.cat(found)[:needed][others.rank :: others.world_size]
        for some, rest in zip(mine.to(others.device).split(self.count), others, strict=True):
            yield torch.cat([some, rest])


def near(order: Tensor, shard: Tensor | None, generator: torch.Generator) -> Tensor:
    """Rearrange a random order so that it reads a few shards at a time.

    The shards are grouped at random, :data:`NEARBY` to a group. The order of the samples within
    a group remains random.

    Args:
        order: positions of samples, N.
        shard: shard of each sample of the split; None leaves the order as it is.
        generator: of the grouping.
    """
    if shard is None or not len(order):
        return order
    group = torch.randperm(int(shard.max()) + 1, generator=generator) // NEARBY
    return order[group[shard[order]].sort(stable=True).indices]


class TrainingLoader(DataLoader[Batch]):
    """Loader of training batches that continues a resumed epoch where it was interrupted.

    Lightning stores the state in checkpoints that are saved within an epoch.
    """

    taken = 0  # number of batches of this epoch that were yielded

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert isinstance(self.sampler, TrainingBatches)
        self.taken = self.sampler.start
        for batch in super().__iter__():
            self.taken += 1  # before the step, which may save a checkpoint
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position in the epoch."""
        return {"taken": self.taken % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the batches that were taken, in the next epoch only."""
        assert isinstance(self.sampler, TrainingBatches)
        self.sampler.start = state["taken"]


class OrderedBatches(Sampler[Tensor]):
    """Index tensors of one rank's evaluation batches, in order.

    Over all ranks every sample occurs exactly once, so figures are exact. Each rank gets the
    same number of batches, so collective operations match.

    Args:
        size: number of samples, N.
        batch_size: largest number of samples in a batch.
        rank: index of this process.
        world_size: number of processes.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        batches = math.ceil(size / (world_size * batch_size)) * world_size
        # Nearly equal batches, some of them empty if there are fewer samples than batches:
        # padding, as in training, would count samples twice.
        self.batches = torch.arange(size).tensor_split(batches)[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches


class Normalizer:
    """Per-channel normalisation, shared by teacher and student.

    Maps values in 0…255 of a floating type, B×C×H×W, to (x / 255 − mean) / std, in place.

    Args:
        spec: the data's mean and standard deviation.
    """

    def __init__(self, spec: ImageSpec) -> None:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (spec.mean, spec.std))
        # One multiply-add instead of two divisions and a subtraction. ``exact`` stays in
        # float32, so a use in bfloat16 does not round the constants of later uses.
        self.exact = self.ready = (1 / (255 * std), -mean / std)

    def __call__(self, x: Tensor) -> Tensor:
        # Converted once per device and type: a copy from the CPU in every batch would
        # synchronise the GPU.
        if (x.device, x.dtype) != (self.ready[0].device, self.ready[0].dtype):
            self.ready = (self.exact[0].to(x), self.exact[1].to(x))
        scale, shift = self.ready
        return x.mul_(scale).add_(shift)
