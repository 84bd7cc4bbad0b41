"""The data module under every data set here: samples in memory, taken a batch at a time.

Samples stay as they are stored (uint8 images); scaling and normalisation happen once a
batch, on the device the batch has been moved to. Data sets only say how to `load`.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kd_lightning.batch import Batch, DataSpec
from kd_lightning.errors import UserError


class Split(NamedTuple):
    """Samples, N×C×H×W uint8, and their classes, N int64."""

    inputs: Tensor
    target: Tensor

    def take(self, index: Tensor) -> "Split":
        """The samples at ``index``, in that order."""
        return Split(self.inputs[index], self.target[index])


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
        self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.size / self.world_size) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + (self.epoch << 32))
        order = torch.randperm(self.size, generator=generator)
        share = math.ceil(self.size / self.world_size)
        positions = torch.arange(self.rank, share * self.world_size, self.world_size)
        yield from order[positions % self.size].split(self.batch_size)


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


class InMemoryDataModule(L.LightningDataModule):
    """Train, validation and test samples held as tensors.

    Args:
        batch_size: samples a training step on each device.
        eval_batch_size: samples an evaluation step on each device.
        val_size: validation samples taken out of the training set: a count, or a
            fraction below 1.
        split_seed: decides the validation split and the experiments below. It is apart
            from ``seed`` so that no seed of a sweep trains on another's validation data.
        seed: decides the order of training samples.
        label_noise: fraction of training labels replaced by another class.
        train_fraction: fraction of the training samples that is kept.
        exclude_classes: classes left out of the training samples.
        mean: of each channel after scaling to 0…1; computed where not given.
        std: of each channel after scaling to 0…1; computed where not given.

    Raises:
        UserError: if a value is out of range, or the data cannot be read.
    """

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 128,
        val_size: int | float = 0.1,
        split_seed: int = 0,
        seed: int = 0,
        label_noise: float = 0.0,
        train_fraction: float = 1.0,
        exclude_classes: Sequence[int] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _check(batch_size >= 1, f"data.batch_size must be at least 1, got {batch_size}")
        _check(
            eval_batch_size >= 1, f"data.eval_batch_size must be at least 1, got {eval_batch_size}"
        )
        _check(val_size > 0, f"data.val_size must be positive, got {val_size}")
        _check(0 <= label_noise <= 1, f"data.label_noise must lie in 0…1, got {label_noise}")
        _check(
            0 < train_fraction <= 1, f"data.train_fraction must lie in 0…1, got {train_fraction}"
        )
        _check((mean is None) == (std is None), "give both data.mean and data.std, or neither")
        self.batch_size, self.eval_batch_size, self.val_size = batch_size, eval_batch_size, val_size
        self.split_seed, self.seed = split_seed, seed
        self.label_noise, self.train_fraction = label_noise, train_fraction
        self.exclude_classes = tuple(exclude_classes)
        self.mean, self.std = mean, std
        self.splits: dict[str, Split] = {}

    def load(self) -> tuple[Split, Split]:
        """Read the official training and test samples."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the data and cut it into ``splits`` train, val and test, once."""
        if self.splits:
            return
        full, test = self.load()
        generator = torch.Generator().manual_seed(self.split_seed)
        val_index, train_index = self._cut(len(full.target), generator)
        num_classes = self._num_classes(full)
        train = self._experiment(full.take(train_index), num_classes, generator)
        self.splits = {"train": train, "val": full.take(val_index), "test": test}
        given = self.mean is not None and self.std is not None
        mean, std = (self.mean, self.std) if given else _channel_stats(train.inputs)
        assert mean is not None
        assert std is not None
        self.spec = DataSpec(tuple(full.inputs.shape[1:]), num_classes, tuple(mean), tuple(std))
        channels = (len(self.spec.mean), len(self.spec.std))
        _check(
            channels == (full.inputs.shape[1],) * 2,
            f"data.mean and data.std need one value a channel ({full.inputs.shape[1]})",
        )
        self._normalize = Normalizer(self.spec)

    def _num_classes(self, full: Split) -> int:
        return int(full.target.max()) + 1

    def _cut(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count = self.val_size if self.val_size >= 1 else math.ceil(self.val_size * size)
        _check(
            count < size,
            f"data.val_size={self.val_size} leaves no training samples out of {size}",
        )
        order = torch.randperm(size, generator=generator)
        return order[: int(count)], order[int(count) :]

    def _experiment(self, train: Split, num_classes: int, generator: torch.Generator) -> Split:
        """Leave out classes, keep a fraction, spoil labels: in this order, training only."""
        wrong = set(self.exclude_classes) - set(range(num_classes))
        _check(not wrong, f"data.exclude_classes: no class {sorted(wrong)} in 0…{num_classes - 1}")
        if self.exclude_classes:
            train = train.take(~torch.isin(train.target, torch.tensor(self.exclude_classes)))
        kept = round(len(train.target) * self.train_fraction)
        _check(kept > 0, "no training samples are left: see data.train_fraction, exclude_classes")
        train = train.take(torch.arange(kept))
        noisy = torch.randperm(kept, generator=generator)[: round(kept * self.label_noise)]
        shift = torch.randint(1, num_classes, (len(noisy),), generator=generator)
        target = train.target.clone()
        target[noisy] = (target[noisy] + shift) % num_classes
        return train._replace(target=target)

    @property
    def fingerprint(self) -> str:
        """A hash of what is trained and validated on: content, not file names."""
        digest = hashlib.blake2b(digest_size=16)
        for split in (self.splits["train"], self.splits["val"]):
            for tensor in split:
                digest.update(tensor.contiguous().numpy().data)
        digest.update(repr(self.spec).encode())
        return digest.hexdigest()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scale and normalise, on the device, once."""
        if not isinstance(batch, Batch):
            return batch
        dtype = self.trainer.lightning_module.dtype if self.trainer else torch.float32
        return batch._replace(inputs=self._normalize(batch.inputs.to(dtype)))

    def train_dataloader(self) -> DataLoader[Batch]:
        data = TensorDataset(self.splits["train"])
        return _loader(data, ShuffledBatches(len(data), self.batch_size, self.seed, *self._ranks))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._ordered("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._ordered("test")

    def _ordered(self, split: str) -> DataLoader[Batch]:
        data = TensorDataset(self.splits[split])
        return _loader(data, OrderedBatches(len(data), self.eval_batch_size, *self._ranks))

    @property
    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


class Normalizer:
    """The one normalisation of a data set, for teacher and student alike.

    Takes B×C×H×W values of 0…255 in a floating type; works in place.
    """

    def __init__(self, spec: DataSpec) -> None:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (spec.mean, spec.std))
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, x: Tensor) -> Tensor:
        # kept on the device they were last needed on: a copy a batch would synchronise
        self.scale, self.shift = self.scale.to(x), self.shift.to(x)
        return x.mul_(self.scale).add_(self.shift)


def _loader(data: TensorDataset, batches: Sampler[Tensor]) -> DataLoader[Batch]:
    # batch_size=None: the sampler's index tensor goes to the data set as it is
    return DataLoader(data, sampler=batches, batch_size=None)


def _channel_stats(inputs: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of N×C×H×W uint8, scaled to 0…1."""
    counts = torch.stack(
        [torch.bincount(c.flatten(), minlength=256).double() for c in inputs.unbind(1)]
    )
    weights = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(1)
    return mean.tolist(), variance.sqrt().clamp_min(1e-6).tolist()


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
