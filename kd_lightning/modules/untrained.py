"""A control: a student whose teacher has learnt nothing."""

from typing import Any

from kd_lightning.data.types import DataSpec
from kd_lightning.modules.base import NetFactory
from kd_lightning.modules.distillation import DistillationModule
from kd_lightning.utils.partials import built


def with_untrained_teacher(
    untrained: NetFactory, spec: DataSpec, **settings: Any
) -> DistillationModule:
    """A student that is taught by a network with the weights it was made with.

    Whatever such a student gains over labels alone is not the teacher's knowledge, but what
    any smooth function of the input, or any softening of the labels, does as well.

    Args:
        untrained: makes the teacher from (input_shape, num_classes).
        spec: shape, classes, mean and standard deviation of the data.
        **settings: see :class:`~kd_lightning.modules.distillation.DistillationModule`.
    """
    return DistillationModule(
        teacher=built(untrained, spec.input_shape, spec.num_classes), spec=spec, **settings
    )
