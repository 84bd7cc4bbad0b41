"""What flows from the data to the modules: a batch, and the measure of the data it comes from."""

from typing import Any, NamedTuple, Self

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
