"""The main job on real MNIST, with few of its training images and the whole of its test set."""

from pathlib import Path

import pytest
import torch
from conftest import Command

from kd_lightning import load_run
from kd_lightning.data.mnist import MNISTDataModule


@pytest.mark.slow
def test_a_student_learns_mnist_from_a_teacher(
    command: Command, data_dir: Path, tmp_path: Path
) -> None:
    done = command(
        *("model=student", f"data.root={data_dir}", f"hydra.run.dir={tmp_path}"),
        *("data.train_fraction=0.12", "data.val_size=1000", "data.batch_size=32"),
        *("pretrain.trainer.max_epochs=1", "trainer.max_epochs=4"),
    )
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path)
    assert run.metrics["test/teacher_accuracy"] > 0.95
    assert run.metrics["test/accuracy"] > 0.95
    assert run.metrics["test/agreement"] > 0.95
    _, (images, labels) = MNISTDataModule(str(data_dir)).load()
    correct = run.predict(images).argmax(1) == labels
    assert len(correct) == 10_000
    assert run.metrics["test/accuracy"] == correct.float().mean().item()
    assert torch.allclose(torch.tensor(run.spec.mean), torch.tensor(0.1307))
