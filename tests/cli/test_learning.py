"""The main job on real MNIST, with few of its training images and the whole test set."""

from pathlib import Path

import pytest
import torch
from conftest import Command, read_facts, read_metrics

from kd_lightning import load_run
from kd_lightning.data.mnist import MNISTDataModule

pytestmark = pytest.mark.slow


def test_student_learns_mnist_and_gains_from_the_teacher(
    command: Command, data_dir: Path, tmp_path: Path
) -> None:
    done = command(
        *("-m", "model=student", "method=kd,ce", f"data.root={data_dir}"),
        *("data.train_fraction=0.12", "data.val_size=1000", "data.batch_size=32"),
        *("pretrain.trainer.max_epochs=1", "trainer.max_epochs=2"),
        f"hydra.sweep.dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    distilled, baseline = (read_metrics(tmp_path / job) for job in "01")
    _, (images, labels) = MNISTDataModule(str(data_dir)).load()
    assert len(labels) == 10_000
    x = (images.double() / 255 - 0.1307) / 0.3081
    predictions = {}
    runs = {"student": tmp_path / "0", "teacher": Path(read_facts(tmp_path / "0")["teacher"])}
    for name, run_dir in runs.items():
        net = load_run(run_dir).network.double()
        with torch.inference_mode():
            predictions[name] = torch.cat([net(part).argmax(1) for part in x.split(1000)])
    student, teacher = predictions["student"], predictions["teacher"]
    # a few of 10,000 samples may be ties in float32
    expected = {
        "test/accuracy": (student == labels).double().mean().item(),
        "test/teacher_accuracy": (teacher == labels).double().mean().item(),
        "test/agreement": (student == teacher).double().mean().item(),
    }
    assert {k: distilled[k] for k in expected} == pytest.approx(expected, abs=3e-4)
    # two epochs of 6,480 samples: seeds differ by about 0.003 in each of the two
    assert distilled["test/accuracy"] > 0.9
    assert distilled["test/kl_teacher"] < 0.8 * baseline["test/kl_teacher"]
    assert distilled["test/agreement"] > baseline["test/agreement"] - 0.005
