"""Base class of datamodules of images, in memory or on disk, that are read in whole batches.

Samples remain uint8 images; each batch is augmented, scaled and normalised on its device. A
subclass only implements :meth:`ImageDataModule.load`.
"""

import hashlib
import math
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms.v2.functional import center_crop

from kd_lightning.data.augment import Augment
from kd_lightning.data.batches import (
    MixedBatches,
    Normalizer,
    OrderedBatches,
    ShuffledBatches,
    Split,
    TensorDataset,
    TrainingBatches,
    TrainingLoader,
)
from kd_lightning.data.changes import Changes
from kd_lightning.data.statistics import channel_stats
from kd_lightning.data.stored import StoredImages
from kd_lightning.data.types import UNLABELLED, Batch, ImageSpec, Prepared
from kd_lightning.utils.errors import UserError

FEWEST = 32  # images of a calibration


class ImageDataModule(L.LightningDataModule):
    """Training, validation and test images, with random access to all of them.

    Args:
        batch_size: samples per training step on each device.
        eval_batch_size: samples per evaluation step on each device.
        val_size: number of validation samples split off the training set, or a fraction of it
            if below 1.
        split_seed: seed of the validation split, the label noise, and the samples kept. It is
            separate from ``seed``, so no seed of a sweep trains on another's validation data.
        seed: seed of the order of training samples.
        label_noise: fraction of training labels replaced by another class.
        train_fraction: fraction of the training samples to keep.
        exclude_classes: classes to remove from the training samples.
        labelled_fraction: fraction of the training samples that keep their labels. The others
            serve a student whose teacher answers for them; a network that learns from labels
            alone is trained on the labelled ones.
        labelled_share: share of labelled samples in each batch, if there are others; the labelled
            ones are repeated.
        augment: augmentation of the training samples; none by default.
        device_resident: whether to keep the samples on the training device.
        mean: mean of each channel after scaling to 0…1; computed by default.
        std: standard deviation of each channel after scaling to 0…1; computed by default.
        num_workers: number of processes that read images which are not decoded yet.

    Raises:
        UserError: if a value is out of range, or the data cannot be read.
    """

    remark = ""  # what a reader of the figures should know about the data
    size: int | None = None  # side of the images that networks see, where those stored are larger
    class_names: tuple[str, ...] = ()  # empty if the classes are numbers

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        val_size: int | float = 0.1,
        split_seed: int = 0,
        seed: int = 0,
        label_noise: float = 0.0,
        train_fraction: float = 1.0,
        exclude_classes: Sequence[int] = (),
        labelled_fraction: float = 1.0,
        labelled_share: float = 0.25,
        augment: Augment | None = None,
        device_resident: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        _check(batch_size >= 1, f"data.batch_size must be at least 1, got {batch_size}")
        _check(
            eval_batch_size >= 1, f"data.eval_batch_size must be at least 1, got {eval_batch_size}"
        )
        _check(val_size > 0, f"data.val_size must be positive, got {val_size}")
        _check((mean is None) == (std is None), "set both data.mean and data.std, or neither")
        _check(all(map(math.isfinite, mean or ())), f"data.mean must be finite, got {mean}")
        is_scale = std is None or all(0 < x < math.inf for x in std)
        _check(is_scale, f"data.std must be positive, got {std}")
        self.batch_size, self.eval_batch_size, self.val_size = batch_size, eval_batch_size, val_size
        self.split_seed, self.seed = split_seed, seed
        _check(0 < labelled_share < 1, f"data.labelled_share must lie in 0…1, got {labelled_share}")
        self.changes = Changes(label_noise, train_fraction, exclude_classes, labelled_fraction)
        self.labelled_share = labelled_share
        self.augment = augment or Augment()
        _check(num_workers >= 0, f"data.num_workers cannot be negative, got {num_workers}")
        self.device_resident, self.num_workers = device_resident, num_workers
        self.mean, self.std = mean, std
        self.splits: dict[str, Split] = {}
        self._digests: dict[tuple[str, str], tuple[Tensor, str]] = {}

    def load(self) -> tuple[Split, Split]:
        """Return the official training and test samples."""
        raise NotImplementedError

    def load_unlabelled(self) -> Tensor | StoredImages | None:
        """Return further training images without labels, N×C×H×W; called after :meth:`load`."""
        return None

    def setup(self, stage: str | None = None) -> None:
        """Read the data once and split it into train, val and test."""
        # Lightning calls setup() before fit, validate and test; the command calls it earlier.
        if self.splits:
            return
        full, test = self.load()
        channels, *shape = full.inputs.shape[1:]
        size = min(shape)
        _check(
            self.augment.shift < size,
            f"augment.shift={self.augment.shift} moves images of {size} pixels out of sight",
        )
        generator = torch.Generator().manual_seed(self.split_seed)
        # Validation first: neither the noise nor the fraction changes which samples it has.
        val_index, train_index = self._cut(full.target, generator)
        num_classes = self._num_classes(full)
        train = full.take(train_index)
        if len(train.target):
            train = self.changes.apply(train, num_classes, generator)
        train = self._with_unlabelled(train)
        self.splits = {"train": train, "val": full.take(val_index), "test": test}
        given = self.mean is not None and self.std is not None
        mean, std = (self.mean, self.std) if given else channel_stats(train.inputs)
        assert mean is not None
        assert std is not None
        seen = (self.size, self.size) if self.size is not None else shape
        self.spec = ImageSpec(
            (channels, *seen), num_classes, tuple(mean), tuple(std), self.class_names
        )
        _check(
            (len(self.spec.mean), len(self.spec.std)) == (channels, channels),
            f"data.mean and data.std need one value per channel ({channels})",
        )
        self._normalize = Normalizer(self.spec)

    def _num_classes(self, full: Split) -> int:
        return int(full.target.max()) + 1

    def _with_unlabelled(self, train: Split) -> Split:
        """Append the images without labels to the training samples."""
        others = self.load_unlabelled()
        if others is None:
            return train
        _check(
            train.inputs.shape[1:] == others.shape[1:],
            f"unlabelled images have shape {tuple(others.shape[1:])}, the training images "
            f"{tuple(train.inputs.shape[1:])}; store both in one shape",
        )
        target = torch.full((len(others),), UNLABELLED)
        if isinstance(train.inputs, StoredImages):
            assert isinstance(others, StoredImages)
            both: Tensor | StoredImages = train.inputs + others
        else:
            assert isinstance(others, Tensor)
            both = torch.cat([train.inputs, others])
        return Split(both, torch.cat([train.target, target]))

    def _cut(self, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the positions of validation and training samples, both in random order."""
        size = len(target)
        count = self.val_size if self.val_size >= 1 else math.ceil(self.val_size * size)
        _check(
            count < size,
            f"data.val_size={self.val_size} leaves no training samples out of {size}",
        )
        order = torch.randperm(size, generator=generator)
        return order[: int(count)], order[int(count) :]

    @property
    def summary(self) -> str:
        """Numbers of samples, as in "1,293 training, 144 validation and 360 test images"."""
        sizes = {name: f"{len(split.target):,}" for name, split in self.splits.items()}
        remark = f"; {self.remark}" if self.remark else ""
        labels = int((self.labels != UNLABELLED).sum())
        if labels < len(self.labels):
            sizes["train"] += f" ({labels:,} labelled)"
        return "{train} training, {val} validation and {test} test images".format(**sizes) + remark

    @property
    def labels(self) -> Tensor:
        """Class of each training sample, N; −100 without a label."""
        return self.splits["train"].target

    @property
    def fingerprint(self) -> str:
        """Hash of the content of the training and validation data."""
        # Validation is included because it selects a teacher's best epoch.
        parts = [self._digest(split, name) for split in ("train", "val") for name in Split._fields]
        return _hash(*parts, self.spec, self.augment, self.augment.views)

    def prepared(self, split: str, augmented: bool = True) -> Prepared:
        """Return a split as the networks see it, to compute outputs once and cache them.

        Args:
            split: ``train``, ``val`` or ``test``.
            augmented: whether training samples are augmented, in all views.
        """
        augment = self.augment if split == "train" and augmented else None
        inputs, views = self.splits[split].inputs, augment.views if augment else 1

        def batches(device: torch.device) -> Iterator[tuple[int, Tensor, Tensor]]:
            data = TensorDataset(self.splits[split])
            order = OrderedBatches(len(inputs), self.eval_batch_size)
            for batch in self._loader(data, order):
                # All views of a batch in turn, because reading it may take longer.
                there = Batch(batch.inputs.to(device), batch.index, batch.index.to(device))
                for view in range(views):
                    x = self._transform(there, augment, view, torch.float32).inputs
                    yield view, batch.index, x

        def fingerprint() -> str:
            return _hash(self._digest(split, "inputs"), self.spec, augment)

        return Prepared(len(inputs), views, fingerprint, batches)

    def calibration(self, count: int) -> Tensor:
        """Return training images without augmentation, uint8, N×C×H×W, drawn at random.

        Args:
            count: N; all images if there are fewer.

        Raises:
            UserError: if there are too few to know the range of activations.
        """
        inputs, there = self.splits["train"].inputs, len(self.splits["train"].inputs)
        _check(
            min(count, there) >= FEWEST,
            f"calibration needs at least {FEWEST} training images, and there are "
            f"{min(count, there)}",
        )
        order = torch.randperm(there, generator=torch.Generator().manual_seed(0))
        return center_crop(inputs[order[:count]], [*self.spec.input_shape[1:]])

    def _digest(self, split: str, name: str) -> str:
        """Return the hash of one tensor of a split, computed once for teachers and caches."""
        tensor = getattr(self.splits[split], name)
        if isinstance(tensor, StoredImages):
            return tensor.digest
        known, digest = self._digests.get((split, name), (None, ""))
        if known is not tensor:  # a split may be replaced
            content = tensor.cpu().contiguous().numpy().data
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            self._digests[split, name] = (tensor, digest)
        return digest

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch to the device."""
        # Lightning's generic search for tensors in a batch takes longer than the copy.
        if not isinstance(batch, Batch) or batch.index is None:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        x, y, i = (
            part.to(device, non_blocking=True) for part in (batch.inputs, batch.target, batch.index)
        )
        return Batch(x, y, i, batch.share)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment, scale and normalise a batch on its device."""
        if not isinstance(batch, Batch):
            return batch
        trainer = self.trainer
        if trainer is None:  # the datamodule is used without a Trainer
            return self._transform(batch, None, 0, torch.float32)
        dtype = trainer.lightning_module.dtype
        assert isinstance(dtype, torch.dtype)
        augment = self.augment if trainer.training else None
        return self._transform(batch, augment, trainer.current_epoch, dtype)

    def _transform(
        self, batch: Batch, augment: Augment | None, epoch: int, dtype: torch.dtype
    ) -> Batch:
        assert batch.index is not None
        x = batch.inputs
        if augment:
            x = augment(x, batch.index, epoch, self.size)
        if self.size is not None:
            x = center_crop(x, [self.size, self.size])  # no change after a random crop
        return batch._replace(inputs=self._normalize(x.to(dtype)))

    def seen(self, split: str, index: Tensor, epoch: int, dtype: torch.dtype) -> Batch:
        """Return samples of a split as the networks see them in an epoch.

        Args:
            split: ``train``, whose samples are augmented, ``val`` or ``test``.
            index: positions of the samples, B, on the device of the split.
            epoch: number of the epoch, from 0.
            dtype: of the inputs.
        """
        batch = TensorDataset(self.splits[split])[index]
        return self._transform(batch, self.augment if split == "train" else None, epoch, dtype)

    def train_dataloader(self) -> DataLoader[Batch]:
        data = self._dataset("train")
        device = data.split.inputs.device
        labelled = self.labels.cpu() != UNLABELLED
        some, others = labelled.nonzero().flatten(), (~labelled).nonzero().flatten()
        if not self._uses_unlabelled():
            _check(
                len(some) > 0,
                "there are no labels to learn from: see data.labelled_fraction; for a student that "
                "needs none, name a trained teacher with teacher_ckpt=",
            )
            others = others[:0]
        images = data.split.inputs
        shard = images.shard if isinstance(images, StoredImages) else None
        last = (self.seed, *self._ranks, device, shard)
        if len(some) and len(others):
            _check(self.batch_size > 1, "data.batch_size=1 holds no labelled and another sample")
            count = min(max(round(self.batch_size * self.labelled_share), 1), self.batch_size - 1)
            rest = ShuffledBatches(others, self.batch_size - count, *last)
            return self._loader(data, MixedBatches(some, rest, count))
        drawn = len(data) if len(some) == len(data) else torch.cat([some, others])
        return self._loader(data, ShuffledBatches(drawn, self.batch_size, *last))

    def _uses_unlabelled(self) -> bool:
        """Whether the module in training learns from samples without a label."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        return getattr(module, "uses_unlabelled", True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._ordered("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._ordered("test")

    def _ordered(self, split: str) -> DataLoader[Batch]:
        data = self._dataset(split)
        return self._loader(data, OrderedBatches(len(data), self.eval_batch_size, *self._ranks))

    def _dataset(self, split: str) -> TensorDataset:
        samples = self.splits[split]
        if self.device_resident and self.trainer is not None:
            samples = self.splits[split] = samples.to(self.trainer.strategy.root_device)
        return TensorDataset(samples)

    def _loader(self, data: TensorDataset, batches: Sampler[Tensor]) -> DataLoader[Batch]:
        # batch_size=None passes the sampler's index tensor unchanged to the data set. The loader
        # gets its own generator, because it draws a seed whenever an epoch starts, which a resumed
        # run does not repeat: from the global generator, it would change the networks' random
        # numbers. Workers only where images are decoded: else passing them on takes longer.
        images = data.split.inputs
        is_slow = isinstance(images, StoredImages) and images.is_slow
        workers = self.num_workers if is_slow else 0
        kind = TrainingLoader if isinstance(batches, TrainingBatches) else DataLoader
        return kind(
            data,
            sampler=batches,
            batch_size=None,
            generator=torch.Generator(),
            num_workers=workers,
            # Not started anew in each epoch: Ctrl-C while Python deletes workers would be lost.
            persistent_workers=workers > 0,
            worker_init_fn=_leave_interrupts,
        )

    @property
    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _leave_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, which would otherwise complain of a lost worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _hash(*parts: Any) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
