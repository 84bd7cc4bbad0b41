"""Metrics that add up over samples and ranks, in float32 whatever the network computes in."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric


class Float32(Metric):
    """A metric that goes where its module goes, but is never converted to half precision.

    A sum of many samples would lose count there.
    """

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        for name, default in self._defaults.items():
            state = getattr(self, name)
            if isinstance(state, Tensor) and isinstance(default, Tensor):
                setattr(self, name, _exact(state))
                self._defaults[name] = _exact(default)
        return self


class Mean(Float32, MeanMetric):
    """The mean of all values."""


class Sums(Float32):
    """Tensors that add up over samples and ranks."""

    full_state_update = False

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape), dist_reduce_fx="sum")

    def add(self, name: str, values: Tensor, rows: Tensor) -> None:
        """Add up values, B×…: those of each sample into the row that ``rows``, B, names."""
        state = getattr(self, name)
        # not in place: what is reset in inference mode may not be written to outside of it
        setattr(self, name, state.index_add(0, rows, values.to(state.dtype)))


def _exact(state: Tensor) -> Tensor:
    return state.float() if state.is_floating_point() else state
