"""Types exchanged between data and modules: batches, splits, and data specifications.

A datamodule need not use any of them: batches may also be ``(x, y)`` or dictionaries with
``labels``. The protocol :class:`Offers` lists its optional attributes.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import Inputs

UNLABELLED = -100  # target of a sample whose class is not known: the default of torch's losses


class Batch(NamedTuple):
    """Batch of B samples.

    Attributes:
        inputs: inputs of the networks: B×C×H×W for images, or tensors by argument name.
        target: class of each sample, B, or of each position, B×L; int64. −100 marks samples
            without a label, and positions without a target.
        index: position of each sample in its split, B, int64. Without it the teacher's outputs
            cannot be cached.
        share: number of rows in this batch over the mean number in the batches of its
            optimizer step; 1 if all batches have equally many rows. The module multiplies the
            loss by it, so a mean over tokens has the same gradient under accumulation and with
            any number of processes.
    """

    # A NamedTuple: Lightning's generic code moves it to a device like any tuple.
    inputs: Any
    target: Tensor
    index: Tensor | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    share: float = 1.0


def as_batch(batch: Any) -> Batch:
    """Convert a batch of any usual form to a :class:`Batch`.

    Args:
        batch: a Batch; ``(x, y)``; or a dictionary with ``labels`` and optionally ``index``
            and ``share``, whose other tensors are passed to the networks by keyword.

    Raises:
        UserError: if the batch has none of these forms.

    >>> x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    >>> as_batch([x, y]).index is None
    True
    >>> as_batch({"input_ids": x, "labels": y}).inputs.keys()
    dict_keys(['input_ids'])
    """
    if isinstance(batch, Batch):
        # torch's default collation makes a tensor of the shares of all samples, which are equal.
        share = batch.share
        return batch._replace(share=float(share[0])) if isinstance(share, Tensor) else batch
    if isinstance(batch, Mapping) and "labels" in batch:
        # A copy, because callbacks receive the original dictionary after the step.
        rest = dict(batch)
        target, index = rest.pop("labels"), rest.pop("index", None)
        return Batch(rest, target, index, float(rest.pop("share", 1.0)))
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return Batch(*batch)
    form = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else "batch"
    raise UserError(
        f"cannot tell inputs from labels in a {form}: a batch is (x, y), a dictionary with "
        "'labels', or a kd_lightning.data.types.Batch"
    )


LARGEST = 2**31  # of the numbers in a specification; NaN is refused, too


def _items(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (None,)  # None is no number


def _are_names(value: Any, count: int) -> bool:
    several = value if isinstance(value, tuple) else (None,)
    return len(several) in (0, count) and all(isinstance(name, str) for name in several)


# Plain numbers instead of tensors, since checkpoints and hashes contain the specification.
class ImageSpec(NamedTuple):
    """Specification of images, from which networks are built and inputs normalised.

    Attributes:
        input_shape: shape of one image, (C, H, W).
        num_classes: number of classes.
        mean: mean of each channel after scaling to 0…1.
        std: standard deviation of each channel after scaling to 0…1.
        class_names: name of each class; empty if the classes are numbers.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()

    @property
    def network_arguments(self) -> tuple[Any, ...]:
        """Positional arguments of network factories: input shape and number of classes."""
        return self.input_shape, self.num_classes

    def example(self) -> Batch:
        """Return two blank images, for dry runs and for measuring costs."""
        return Batch(torch.zeros(2, *self.input_shape), torch.zeros(2, dtype=torch.long))

    def plain(self) -> dict[str, Any]:
        """Return the values as lists and numbers, for checkpoints and configurations."""
        found = {k: list(v) if isinstance(v, tuple) else v for k, v in self._asdict().items()}
        return {k: v for k, v in found.items() if k != "class_names" or v}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Create a specification from the values of :meth:`plain`.

        Raises:
            UserError: if they are no such values.
        """
        required = {*cls._fields} - {*cls._field_defaults}
        if isinstance(values, Mapping) and required <= {*values} <= {*cls._fields}:
            as_tuples: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
            }
            spec = cls(**as_tuples)
            numbers = [spec.num_classes, *_items(spec.input_shape)]
            numbers += [*_items(spec.mean), *_items(spec.std)]
            are_numbers = all(isinstance(n, int | float) and abs(n) < LARGEST for n in numbers)
            if are_numbers and _are_names(spec.class_names, spec.num_classes):
                return spec
        raise UserError(f"{values!r:.200} is no specification of images: see ImageSpec.plain()")


# A protocol, so specifications of other kinds of data need not derive from ImageSpec.
class Spec(Protocol):
    """Interface of data specifications, such as :class:`ImageSpec`."""

    @property
    def num_classes(self) -> int: ...

    @property
    def network_arguments(self) -> tuple[Any, ...]: ...

    def example(self) -> Batch: ...

    def plain(self) -> dict[str, Any]: ...


class Prepared:
    """Split as the networks see it: every view of every sample, transformed.

    Args:
        size: number of samples, N.
        views: number of augmented versions of each sample, V; 0 if unlimited.
        fingerprint: computes a hash of the samples and their transformation.
        batches: yields every view of every sample on a device, in order, as tuples of view,
            index B, and inputs B×….
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
        """Hash of the split, computed at the first access: 30 ms for all of MNIST."""
        return self._fingerprint()


class Offers(Protocol):
    """Optional attributes of a datamodule; each one enables a feature.

    - ``spec``: builds networks from the command line, and converts inputs back to images.
    - ``labels``: class of each training sample, N, for terms such as CRD.
    - ``prepared(split)``: the split ``train``, ``val`` or ``test`` as networks see it; together
      with ``index`` in each batch, it enables the cache of the teacher's outputs. With
      ``augmented=False`` it is the one view without augmentation, for linear probes.
    - ``fingerprint``: hash of the training and validation data, for the store of teachers.
    """

    # A protocol instead of a base class: any LightningDataModule can provide the attributes.

    @property
    def spec(self) -> Spec: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def fingerprint(self) -> str: ...

    def prepared(self, split: str, augmented: bool = True) -> Prepared: ...
