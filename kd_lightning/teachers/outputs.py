"""A frozen teacher's outputs for batches: read from the cache, or computed where there is none."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from kd_lightning.data.types import Batch
from kd_lightning.nets.taps import Outputs
from kd_lightning.teachers.cache import CachedOutputs, TeacherCache, run_teacher


class TeacherOutputs:
    """Outputs of a teacher for the splits of a datamodule.

    Args:
        cache: where the outputs are stored.

    Attributes:
        cached: the stored outputs by split.
    """

    def __init__(self, cache: TeacherCache) -> None:
        self.cache = cache
        self.cached: dict[str, CachedOutputs] = {}
        self._uncached: set[str] = set()  # splits for which the cache has no room
        self._datamodule: Any = None  # of the cached outputs

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Callbacks copy modules. The cache may hold gigabytes, and is shared by modules anyway; a
        # datamodule holds its trainer, which cannot be copied.
        return type(self)(self.cache)

    def forget(self) -> None:
        """Look the outputs up again, which is cheap: teacher, layers or data may have changed."""
        self.cached, self._uncached = {}, set()

    def fill(
        self,
        teacher: nn.Module,
        datamodule: Any,
        device: torch.device,
        paths: Mapping[str, Sequence[str]],
    ) -> None:
        """Find or compute the outputs for splits of a datamodule; called by all ranks at once.

        Args:
            teacher: the network.
            datamodule: without ``prepared``, nothing is cached.
            device: device of the teacher.
            paths: layers needed beside the logits, by split.
        """
        if datamodule is not self._datamodule:  # an index means another sample in other data
            self.forget()
            self._datamodule = datamodule
        prepared = getattr(datamodule, "prepared", None)
        if prepared is None:
            return
        for split, layers in paths.items():
            if split in self.cached or split in self._uncached:
                continue
            found = self.cache.outputs(teacher, prepared(split), device, layers, together=True)
            if found is not None:
                self.cached[split] = found
            else:
                # Remembered, so that the cache's warning appears once and not in every epoch.
                self._uncached.add(split)

    def read(
        self, teacher: nn.Module, batch: Batch, split: str, epoch: int, paths: Sequence[str]
    ) -> Outputs:
        """Return the outputs for a batch of a split, in the view of an epoch."""
        if split in self.cached and batch.index is not None:
            return self.cached[split].read(batch.index, epoch)
        return run_teacher(teacher, batch.inputs, paths)
