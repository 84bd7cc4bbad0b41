"""Distils from one cache on two processes, comparing it with the live teacher in every step."""

import json
import sys
from pathlib import Path

import torch
from test_cache import Comparing, feature_terms, fit, student_of

from kd_lightning.data.augment import Augment
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.nets.cnn import TeacherCNN
from kd_lightning.teachers.cache import TeacherCache


def main(folder: Path) -> None:
    data = DigitsDataModule(batch_size=48, train_fraction=0.3, augment=Augment(shift=2, views=2))
    data.setup()
    torch.manual_seed(0)
    teacher = TeacherCNN(data.spec.input_shape, data.spec.num_classes, width=4).eval()
    module = student_of(data, teacher, Comparing, feature_terms(), cache=TeacherCache(str(folder)))
    trainer = fit(module, data, devices=2, strategy="ddp")
    found = {"worst": module.worst, "compared": module.compared, "steps": trainer.global_step}
    found["world_size"] = trainer.world_size
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
