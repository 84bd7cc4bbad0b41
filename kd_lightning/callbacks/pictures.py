"""Images of predictions on validation samples, before and after training."""

import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from tensorboard.compat.proto import summary_pb2
from torch import Tensor

from kd_lightning.callbacks.dashboard import boards
from kd_lightning.callbacks.drawing import Array, Tile, answers, confusion, shortened
from kd_lightning.data.types import Batch, as_batch
from kd_lightning.metrics.diagnostics import MOST_TABULATED
from kd_lightning.modules.base import BaseModule
from kd_lightning.utils.networks import evaluating

Sheet = dict[str, Tensor]


class Pictures(L.Callback):
    """Show predictions in TensorBoard's tab Images.

    - ``pictures/confusion``: confusion matrix, before and after training.
    - ``pictures/soft_targets``: teacher's and student's probabilities for one sample per class,
      at the temperature of the training, before and after training.
    - ``pictures/disagreement``: samples with the largest total variation distance
      ½ Σ_c |p_t − p_s| at T = 1, after training.

    Inputs are shown, too, if the data specification allows the normalisation to be undone.
    Pictures before training need a datamodule with ``prepared``; those after it use the
    predictions of the final validation. There are no pictures beyond 128 classes.

    Args:
        samples: number of validation samples, counted from the first.
        classes: number of classes in ``soft_targets``.
        disagreements: number of samples in ``disagreement``.
    """

    shapes_result = False

    def __init__(self, samples: int = 1000, classes: int = 8, disagreements: int = 16) -> None:
        self.samples, self.classes, self.disagreements = samples, classes, disagreements
        self._rows: dict[str, list[Tensor]] = defaultdict(list)
        self._boards: list[Any] = []
        self._names: Sequence[str] = ()  # of the classes

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Kept, because the final validation may run without loggers, so its figures do not
        # appear as another point of the curves over epochs.
        self._boards = boards(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        prepared = getattr(getattr(trainer, "datamodule", None), "prepared", None)
        is_new = trainer.global_step == 0  # a resumed run has its pictures already
        # Not in on_fit_start, which runs before the module's, where the teacher is cached.
        if is_new and prepared and self._boards and isinstance(pl_module, BaseModule):
            with evaluating(pl_module), isolate_rng(), torch.no_grad():
                self._look(pl_module, trainer.datamodule)  # pyright: ignore[reportAttributeAccessIssue]
            self._show(trainer, pl_module, is_trained=False)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING and (self._boards or boards(trainer)):
            self._keep(as_batch(batch), outputs)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING and isinstance(pl_module, BaseModule):
            self._boards = self._boards or boards(trainer)
            self._show(trainer, pl_module, is_trained=True)

    def show(
        self,
        trainer: L.Trainer,
        module: BaseModule,
        batch: Batch,
        outputs: dict[str, Any],
        is_trained: bool,
    ) -> None:
        """Show predictions that were computed elsewhere.

        Args:
            trainer: its loggers receive the images.
            module: of the student.
            batch: validation samples.
            outputs: of the module's ``evaluate`` for them.
            is_trained: whether the training has ended.
        """
        self._boards = boards(trainer)
        self._keep(batch, outputs)
        self._show(trainer, module, is_trained)

    def _look(self, module: BaseModule, data: Any) -> None:
        """Evaluate the networks on the first validation samples."""
        # Not trainer.validate(), which would log figures and reset the state of the fit.
        target = getattr(getattr(data, "splits", {}).get("val"), "target", None)
        if target is None:
            return  # not a datamodule of this package: there are only pictures after training
        for _, index, inputs in data.prepared("val").batches(module.device):
            there = index.to(module.device)
            batch = Batch(inputs.to(module.dtype), target[index].to(module.device), there)
            if self._keep(batch, module.evaluate(batch)) >= self.samples:
                return

    def _keep(self, batch: Batch, outputs: dict[str, Any]) -> int:
        """Store a batch's inputs and predictions and return the number of samples seen."""
        count = sum(map(len, self._rows["target"]))
        if count < self.samples and outputs["logits"].shape[-1] <= MOST_TABULATED:
            sheet = probabilities(outputs)
            if isinstance(batch.inputs, Tensor) and len(batch.inputs) == len(outputs["target"]):
                sheet["inputs"] = batch.inputs
            for name, value in sheet.items():
                # On the CPU at once: inputs of 1,000 samples may take much memory of a GPU.
                self._rows[name].append(value[: self.samples - count].float().cpu())
        return count + len(outputs["target"])

    def _show(self, trainer: L.Trainer, module: BaseModule, is_trained: bool) -> None:
        sheet = {name: torch.cat(parts) for name, parts in self._rows.items() if parts}
        self._rows.clear()
        if not sheet or not self._boards:
            return
        sheet["target"] = sheet["target"].long()
        if "inputs" in sheet:
            sheet["inputs"] = as_images(sheet["inputs"], module.task.spec)
        self._names = getattr(module.task.spec, "class_names", ())
        for name, picture in self._draw(sheet, is_trained).items():
            for board in self._boards:
                _write(board, f"pictures/{name}", picture, trainer.global_step)

    def _draw(self, sheet: Sheet, is_trained: bool) -> dict[str, Any]:
        """Draw the pictures and return them by name, H×W×3 each."""
        target, predicted = sheet["target"], sheet["student"].argmax(1)
        size, classes = sheet["student"].shape
        counts = torch.bincount(target * classes + predicted, minlength=classes**2)
        right = f"{(predicted == target).sum()} of {size} validation samples are right"
        pictures = {"confusion": confusion(counts.view(classes, -1).numpy(), right, self._names)}
        if "teacher" in sheet:
            heading = f"T = {sheet['temperature'].mean():.3g}"
            tiles = [
                tile(sheet, i, "soft_", self._names) for i in one_per_class(target, self.classes)
            ]
            pictures["soft_targets"] = answers(tiles, heading)
        if "teacher" in sheet and is_trained:
            distance = (sheet["teacher"] - sheet["student"]).abs().sum(1)
            worst = distance.topk(min(self.disagreements, size)).indices.tolist()
            tiles = [tile(sheet, i, names=self._names) for i in worst]
            pictures["disagreement"] = answers(tiles, "largest disagreement")
        return pictures


def _write(board: Any, name: str, picture: Array, step: int) -> None:
    """Write an image, H×W×3 uint8, under a name."""
    # Not SummaryWriter.add_image, which resamples it to its own size and compresses it as much as
    # possible: five images would take 35 ms instead of 10.
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    height, width, channels = picture.shape
    kind: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
    image = kind.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=buffer.getvalue()
    )
    summary = kind(value=[kind.Value(tag=name, image=image)])
    board._get_file_writer().add_summary(summary, step)


def probabilities(outputs: dict[str, Any]) -> Sheet:
    """Return probabilities, N×C, from the outputs of a module's ``evaluate``.

    Returns:
        ``student`` and ``teacher`` at T = 1, ``soft_student`` and ``soft_teacher`` at T, and
        ``target`` and ``temperature``, N; only ``student`` and ``target`` without a teacher.
    """
    z_s, target = outputs["logits"], outputs["target"]
    sheet = {"target": target, "student": z_s.softmax(1)}
    if "teacher" not in outputs:
        return sheet
    teacher, t = outputs["teacher"], outputs["temperature"]
    return {
        **sheet,
        "teacher": teacher(1.0).softmax(1),
        "soft_student": (z_s / t).softmax(1),
        "soft_teacher": (teacher(t) / t).softmax(1),
        "temperature": torch.as_tensor(t, device=z_s.device).flatten().expand(len(z_s)),
    }


def as_images(inputs: Tensor, spec: Any) -> Tensor:
    """Convert normalised inputs to uint8 images, N×C×H×W; other inputs are returned unchanged."""
    mean, std = getattr(spec, "mean", None), getattr(spec, "std", None)
    if mean is None or std is None or inputs.dim() != 4:
        return inputs
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
    return ((inputs * std + mean) * 255).round().clamp(0, 255).byte()


def one_per_class(target: Tensor, count: int) -> list[int]:
    """Return the position of the first sample of each class, for the first ``count`` classes."""
    return [int((target == c).nonzero()[0]) for c in target.unique()[:count]]


def tile(sheet: Sheet, i: int, kind: str = "", names: Sequence[str] = ()) -> Tile:
    """Return the image, title and probabilities of one sample."""

    def label(c: Tensor) -> str:
        return shortened(names[int(c)]) if names else str(int(c))

    p_t, p_s = (sheet[kind + name][i] for name in ("teacher", "student"))
    named = [
        f"{name} {label(p.argmax())} ({100 * p.max():.0f} %)"
        for name, p in (("teacher", p_t), ("student", p_s))
    ]
    title = f"true {label(sheet['target'][i])}   {'   '.join(named)}"
    image = image_of(sheet["inputs"][i]) if "inputs" in sheet else None
    return Tile(image, title, p_t.numpy(), p_s.numpy())


def image_of(sample: Tensor) -> Array | None:
    """Return a sample as an image, H×W or H×W×3; None if it is not an image."""
    is_image = sample.dim() == 3 and len(sample) in (1, 3) and sample.dtype == torch.uint8
    return sample.movedim(0, -1).squeeze(-1).numpy() if is_image else None
