"""What student and teacher say of some validation samples, before training and after it."""

from collections import defaultdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from kd_lightning.callbacks.board import boards
from kd_lightning.callbacks.drawing import Array, Tile, answers, confusion
from kd_lightning.data.types import Batch
from kd_lightning.modules import DistillationModule
from kd_lightning.modules.base import Learner
from kd_lightning.nets.taps import evaluating

Sheet = dict[str, Tensor]


class Pictures(L.Callback):
    """Shows in TensorBoard, in the tab Images:

    - ``pictures/confusion``: true class and answer, before the training and after it;
    - ``pictures/soft_targets``: teacher's and student's probabilities of one sample a class,
      at the training's temperature, before and after;
    - ``pictures/disagreement``: the samples on whose probabilities at T = 1 the two differ
      most, by ½ Σ_c |p_t − p_s|, after.

    Args:
        samples: so many of the validation data, the first, are looked at.
        classes: how many have a sample in ``soft_targets``.
        disagreements: how many samples there are in ``disagreement``.
    """

    def __init__(self, samples: int = 1000, classes: int = 8, disagreements: int = 16) -> None:
        self.samples, self.classes, self.disagreements = samples, classes, disagreements

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:  # a run that is resumed has been shown as it began
            self._show(trainer, pl_module, is_trained=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._show(trainer, pl_module, is_trained=True)

    def _show(self, trainer: L.Trainer, module: L.LightningModule, is_trained: bool) -> None:
        data = getattr(trainer, "datamodule", None)
        found = boards(trainer)
        if not found or data is None or not isinstance(module, Learner):
            return
        with evaluating(module), isolate_rng(), torch.no_grad():
            sheet = look(module, data, self.samples)
        for name, picture in self._draw(sheet, is_trained).items():
            for board in found:
                board.add_image(f"pictures/{name}", picture, trainer.global_step, dataformats="HWC")

    def _draw(self, sheet: Sheet, is_trained: bool) -> dict[str, Any]:
        """Each picture by name, H×W×3."""
        target, answer = sheet["target"], sheet["student"].argmax(1)
        size, classes = sheet["student"].shape
        counts = torch.bincount(target * classes + answer, minlength=classes**2)
        right = f"{(answer == target).sum()} of {size} validation samples are right"
        pictures = {"confusion": confusion(counts.view(classes, -1).numpy(), right)}
        if "teacher" in sheet:
            heading = f"T = {sheet['temperature'].mean():.3g}"
            tiles = [tile(sheet, i, "soft_") for i in one_a_class(target, self.classes)]
            pictures["soft_targets"] = answers(tiles, heading)
        if "teacher" in sheet and is_trained:
            apart = (sheet["teacher"] - sheet["student"]).abs().sum(1)
            worst = apart.topk(min(self.disagreements, size)).indices.tolist()
            tiles = [tile(sheet, i) for i in worst]
            pictures["disagreement"] = answers(tiles, "where they differ most")
        return pictures


def look(module: Learner, data: Any, count: int) -> Sheet:
    """What is said of the first N validation samples, on the CPU.

    That is ``inputs``, N×… as stored, ``target``, N, and what :func:`said` gives, N×….
    """
    split, rows, seen = data.splits["val"], defaultdict(list), 0
    for _, index, inputs in data.prepared("val").batches(module.device):
        target = split.target[index].to(module.device)
        batch = Batch(inputs.to(module.dtype), target, index.to(module.device))
        for name, value in said(module, batch).items():
            rows[name].append(value.float().cpu())
        seen += len(index)
        if seen >= count:
            break
    sheet = {name: torch.cat(parts)[:count] for name, parts in rows.items()}
    return {**sheet, "inputs": split.inputs[:count].cpu(), "target": split.target[:count].cpu()}


def said(module: Learner, batch: Batch) -> Sheet:
    """Probabilities, B×C, of ``student`` and ``teacher`` at T = 1; with ``soft_`` at T.

    And the ``temperature`` T, B, itself. Without a teacher only the ``student``.
    """
    if not isinstance(module, DistillationModule):
        return {"student": module(batch.inputs).softmax(1)}
    z_s, teacher, t = module.opinions(batch, "val")
    return {
        "student": z_s.softmax(1),
        "teacher": teacher(1.0).softmax(1),
        "soft_student": (z_s / t).softmax(1),
        "soft_teacher": (teacher(t) / t).softmax(1),
        "temperature": torch.as_tensor(t, device=z_s.device).flatten().expand(len(z_s)),
    }


def one_a_class(target: Tensor, count: int) -> list[int]:
    """Where the first sample of each class stands, for the first classes that have any."""
    return [int((target == c).nonzero()[0]) for c in target.unique()[:count]]


def tile(sheet: Sheet, i: int, kind: str = "") -> Tile:
    """A sample as it is drawn."""
    p_t, p_s = (sheet[kind + name][i] for name in ("teacher", "student"))
    named = [
        f"{name} {p.argmax()} ({100 * p.max():.0f} %)"
        for name, p in (("teacher", p_t), ("student", p_s))
    ]
    title = f"true {sheet['target'][i]}   {'   '.join(named)}"
    return Tile(image_of(sheet["inputs"][i]), title, p_t.numpy(), p_s.numpy())


def image_of(sample: Tensor) -> Array | None:
    """A sample as an image, H×W or H×W×3; None if it is none."""
    is_image = sample.dim() == 3 and len(sample) in (1, 3) and sample.dtype == torch.uint8
    return sample.movedim(0, -1).squeeze(-1).numpy() if is_image else None
