"""What flows from the data to the modules: batches, whole splits, the specification of the data.

A datamodule needs none of this: batches may be ``(x, y)`` or dictionaries with ``labels``.
What it may offer beyond that is the protocol :class:`Offers`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import Inputs


class Batch(NamedTuple):
    """Samples as they travel.

    Attributes:
        inputs: what the networks take: B×C×H×W for images, or tensors by argument name.
        target: class of each sample, B, or of each position, B×L, with −100 where nothing is
            asked; int64.
        index: position of each sample in its split, B, int64; None where it is not known, and
            then the teacher's outputs cannot be cached.
        share: rows in this batch over the mean rows of a batch in its optimizer step, so that
            a mean over tokens has the same gradient under accumulation and on any number of
            processes; 1 where all batches have equally many rows.
    """

    inputs: Any
    target: Tensor
    index: Tensor | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    share: float = 1.0


def as_batch(batch: Any) -> Batch:
    """A batch of any of the usual forms as a :class:`Batch`.

    Args:
        batch: a Batch; ``(x, y)``; or a dictionary with ``labels`` (perhaps also ``index`` and
            ``share``), whose other tensors the networks take by keyword.

    Raises:
        UserError: if it is none of these.

    >>> x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    >>> as_batch([x, y]).index is None
    True
    >>> as_batch({"input_ids": x, "labels": y}).inputs.keys()
    dict_keys(['input_ids'])
    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, Mapping) and "labels" in batch:
        # a new dictionary: the batch belongs to the loader and to the user's callbacks
        rest = dict(batch)
        target, index = rest.pop("labels"), rest.pop("index", None)
        return Batch(rest, target, index, rest.pop("share", 1.0))
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return Batch(*batch)
    form = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else "batch"
    raise UserError(
        f"cannot tell inputs from labels in a {form}: a batch is (x, y), a dictionary with "
        "'labels', or a kd_lightning.data.types.Batch"
    )


class ImageSpec(NamedTuple):
    """What must be known of images before a network can be built or used.

    Attributes:
        input_shape: shape of one image, (C, H, W).
        num_classes: number of classes.
        mean: of each channel, after scaling to 0…1.
        std: of each channel, after scaling to 0…1.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def network_arguments(self) -> tuple[Any, ...]:
        """What a network is built from."""
        return self.input_shape, self.num_classes

    def example(self) -> Batch:
        """Two blank images, for dry runs and for counting costs."""
        return Batch(torch.zeros(2, *self.input_shape), torch.zeros(2, dtype=torch.long))

    def plain(self) -> dict[str, Any]:
        """The values as lists and numbers, as checkpoints and configurations hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._asdict().items()}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`plain`."""
        as_tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**as_tuples)


class Spec(Protocol):
    """What a task has to know of the data; :class:`ImageSpec` is one."""

    @property
    def num_classes(self) -> int: ...

    @property
    def network_arguments(self) -> tuple[Any, ...]: ...

    def example(self) -> Batch: ...

    def plain(self) -> dict[str, Any]: ...


class Prepared:
    """A split as networks see it: every view of every sample, transformed.

    Args:
        size: number of samples.
        views: number of versions of each sample; 0 where there is no end of them.
        fingerprint: computes a hash of the samples and of how they are transformed.
        batches: all of it on a device, in order: view, index B, inputs B×….
    """

    def __init__(
        self,
        size: int,
        views: int,
        fingerprint: Callable[[], str],
        batches: Callable[[torch.device], Iterator[tuple[int, Tensor, Inputs]]],
    ) -> None:
        self.size, self.views, self.batches = size, views, batches
        self._fingerprint = fingerprint

    @cached_property
    def fingerprint(self) -> str:
        """The hash, computed when it is first asked for: all of MNIST takes 30 ms."""
        return self._fingerprint()


class Offers(Protocol):
    """What a datamodule may offer; whatever is missing switches a feature off.

    - ``spec``: lets the command line build networks, and turns inputs back into pictures.
    - ``labels``: the class of each training sample, N, for terms such as CRD.
    - ``prepared(split)``: the splits ``train``, ``val`` and ``test`` as networks see them;
      with ``index`` in each batch it switches the cache of the teacher's outputs on.
    - ``fingerprint``: a hash of what is trained and validated on, for the store of teachers.
    """

    @property
    def spec(self) -> Spec: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def fingerprint(self) -> str: ...

    def prepared(self, split: str) -> Prepared: ...
