"""What flows from the data to the modules: batches, whole splits, the measure of the data."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Samples as they travel.

    Attributes:
        inputs: what the networks take; B×C×H×W for images.
        target: class of each sample, B, int64.
        index: position of each sample in its split, B, int64.
    """

    inputs: Tensor
    target: Tensor
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]


class DataSpec(NamedTuple):
    """What must be known of the data before a network can be built or used.

    Attributes:
        input_shape: shape of one sample, (C, H, W) for images.
        num_classes: number of classes.
        mean: of each channel, after scaling to 0…1.
        std: of each channel, after scaling to 0…1.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def plain(self) -> dict[str, Any]:
        """The values as lists and numbers, as checkpoints and configurations hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._asdict().items()}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`plain`."""
        as_tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**as_tuples)


class Prepared(NamedTuple):
    """A split as networks see it: every view of every sample, transformed.

    Attributes:
        size: number of samples.
        views: number of versions of each; 0 where they have no end.
        fingerprint: a hash of the samples and of what is done to them.
        batches: all of it on a device, in order: view, index B, inputs B×….
    """

    size: int
    views: int
    fingerprint: str
    batches: Callable[[torch.device], Iterator[tuple[int, Tensor, Tensor]]]
