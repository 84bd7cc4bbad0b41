"""Distils from one cache on two processes, comparing it with the live teacher in every step."""

import json
import sys
from pathlib import Path

import lightning as L
import torch
from test_cache import Comparing, feature_terms, fit, student_of

from kd_lightning.data.augment import Augment
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.nets.cnn import TeacherCNN
from kd_lightning.teachers.cache import TeacherCache


class Count(L.Callback):
    """Counts the rows of the teacher's batches until training starts."""

    def __init__(self, teacher: torch.nn.Module) -> None:
        self.rows, self.before = 0, 0
        teacher.register_forward_hook(self._add)

    def _add(self, teacher: torch.nn.Module, inputs: tuple[torch.Tensor], output: object) -> None:
        self.rows += len(inputs[0]) if len(inputs[0]) > 1 else 0  # one row to measure its size

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before = self.rows


def main(folder: Path) -> None:
    data = DigitsDataModule(batch_size=48, train_fraction=0.3, augment=Augment(shift=2, views=2))
    data.setup()
    torch.manual_seed(0)
    teacher = TeacherCNN(data.spec.input_shape, data.spec.num_classes, width=4).eval()
    module = student_of(data, teacher, Comparing, feature_terms(), cache=TeacherCache(str(folder)))
    count = Count(teacher)
    trainer = fit(module, data, devices=2, strategy="ddp", callbacks=[count])
    found = {"worst": module.worst, "compared": module.compared, "steps": trainer.global_step}
    found |= {"world_size": trainer.world_size, "rows": count.before}
    found["needed"] = sum(p.size * p.views for p in map(data.prepared, ("train", "val")))
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
