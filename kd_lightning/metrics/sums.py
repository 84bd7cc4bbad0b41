"""Metrics summed over samples and ranks, in float32 at any precision of the network."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric


class Float32(Metric):
    """A metric that follows its module to a device but keeps its state in float32."""

    # trainer.precision=bf16-true converts the module with everything in it. A count would then
    # stop at 256, since 256 + 1 is 256 in bfloat16. torchmetrics' own set_dtype protection
    # covers .half() and .float(), but not module.to(dtype).
    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        for name, default in self._defaults.items():
            state = getattr(self, name)
            if isinstance(state, Tensor) and isinstance(default, Tensor):
                setattr(self, name, _exact(state))
                self._defaults[name] = _exact(default)
        return self


class Mean(Float32, MeanMetric):
    """The weighted mean of all values."""


class Sums(Float32):
    """Tensors that are summed over samples and ranks.

    Args:
        **shapes: shape of each tensor by name; they start at zero.
    """

    # update() does not depend on the state, so torchmetrics need not call it twice per batch
    full_state_update = False

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape), dist_reduce_fx="sum")

    def add(self, name: str, values: Tensor, rows: Tensor) -> None:
        """Add the values of each sample to one row of a tensor.

        Args:
            name: name of the tensor, R×….
            values: B×….
            rows: row of each sample, B, int64.
        """
        state = getattr(self, name)
        # Not in place: a state that was reset in inference mode is an inference tensor, and
        # writing to one outside of inference mode is an error.
        setattr(self, name, state.index_add(0, rows, values.to(state.dtype)))


def _exact(state: Tensor) -> Tensor:
    return state.float() if state.is_floating_point() else state
