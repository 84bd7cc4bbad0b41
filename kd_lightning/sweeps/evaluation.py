"""Evaluation of many students on the samples of a split, which all of them share.

Shapes: S students, N samples of the split, B in a batch, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.data.images import ImageDataModule
from kd_lightning.data.types import Batch
from kd_lightning.modules import DistillationModule
from kd_lightning.nets.ensemble import mean_probabilities
from kd_lightning.sweeps.students import Students


@dataclass(frozen=True)
class Samples:
    """The samples of a split, as the networks see them.

    Attributes:
        split: its name.
        batches: in order, as an ordinary evaluation has them.
        z_t: the teacher's logits for each batch, B×C or B×M×C; empty without a teacher.
    """

    split: str
    batches: list[Batch]
    z_t: list[Tensor]

    @property
    def target(self) -> Tensor:
        """Class of each sample, N."""
        return torch.cat([batch.target for batch in self.batches])

    @property
    def inputs(self) -> Tensor:
        """Inputs of all samples, N×…."""
        return torch.cat([batch.inputs for batch in self.batches])


def samples_of(
    data: ImageDataModule, split: str, module: DistillationModule, device: torch.device
) -> Samples:
    """Return the samples of ``val`` or ``test``; the teacher's outputs are cached, if possible."""
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    assert isinstance(module.dtype, torch.dtype)
    if module.teacher is not None:
        module.outputs.fill(module.teacher, data, device, {split: []})
    batches, z_t = [], []
    for index in loader.sampler:
        batch = data.seen(split, index.to(device), 0, module.dtype)
        batches.append(batch)
        if module.teacher is not None:
            found = module.outputs.read(module.teacher, batch, split, 0, [])
            z_t.append(found["logits"])
    return Samples(split, batches, z_t)


def logits(
    students: Students, samples: Samples, state: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """Return the logits of each batch, S×B×C, with the current weights or those of ``state``."""
    return [students.logits(batch.inputs, state) for batch in samples.batches]


def figures(z: list[Tensor], samples: Samples) -> dict[str, Tensor]:
    """Return the figures of :class:`~kd_lightning.metrics.evaluation.Evaluation`, S each.

    Args:
        z: logits of each batch, S×B×C.
        samples: the split.
    """
    # Computed for all students at once, where the class itself would take 2 ms for each. In the
    # same steps: sums over batches of float32, or what the precision of the training makes it.
    students = len(z[0])
    loss, count = torch.zeros(students, device=z[0].device), 0
    hits: dict[str, Tensor] = {}

    def add(name: str, right: Tensor) -> None:
        hits[name] = hits.get(name, 0) + right.sum(-1)

    for i, (own, batch) in enumerate(zip(z, samples.batches, strict=True)):
        size = len(batch.target)
        if not size:
            continue
        target = batch.target.expand(students, size)
        nll = F.cross_entropy(own.flatten(0, 1), target.flatten(), reduction="none")
        loss = loss + nll.view(students, size).mean(1).to(loss.dtype) * size
        count += size
        add("accuracy", own.argmax(-1) == target)
        if samples.z_t:
            prediction = mean_probabilities(samples.z_t[i]).argmax(-1)
            add("teacher_accuracy", (prediction == batch.target).expand(students, size))
            add("agreement", own.argmax(-1) == prediction)
    shares = {name: number.float() / count for name, number in hits.items()}
    return {**shares, "loss": loss / count}


def thorough(
    module: DistillationModule, z: Tensor, samples: Samples, temperature: float
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return all figures of one trained student, and its tables of validation data.

    Args:
        module: of the student, whose task measures.
        z: its logits for all samples, N×C.
        samples: the split.
        temperature: T of its training.
    """
    # As BaseModule.measure() and log_evaluation() do it, with all batches as one.
    target, classes = samples.target, z.shape[-1]
    teacher: Any = _teacher(samples)
    evaluation = module.task.evaluation(classes, bool(samples.z_t)).to(z.device)
    evaluation.update(z, target, teacher(1.0) if teacher else None)
    values = evaluation.result()
    made = module.task.diagnostics(classes, bool(samples.z_t), samples.split == "val")
    diagnostics = made.to(z.device)
    diagnostics.update(z, target, teacher, temperature)
    further, tables = diagnostics.result()
    values |= {k: v for k, v in further.items() if k not in values}
    return {f"{samples.split}/{k}": float(v) for k, v in values.items()}, tables


def _teacher(samples: Samples) -> Any:
    if not samples.z_t:
        return None
    together = torch.cat(samples.z_t)
    return lambda temperature: mean_probabilities(together, temperature)


def outputs_of(z: Tensor, samples: Samples, temperature: float) -> dict[str, Any]:
    """Return one student's predictions, N×C, as its module's ``evaluate`` would."""
    outputs: dict[str, Any] = {"logits": z, "target": samples.target}
    teacher = _teacher(samples)
    return {**outputs, "teacher": teacher, "temperature": temperature} if teacher else outputs
