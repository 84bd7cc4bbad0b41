"""What an objective learns beside the student is saved: a resumed run equals a whole one."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from kd_lightning.callbacks.reseed import ReseedEachEpoch
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.modules import DistillationModule
from kd_lightning.nets.cnn import StudentCNN, TeacherCNN
from kd_lightning.objective import Objective
from kd_lightning.runs.checkpoints import AtomicCheckpointIO
from kd_lightning.schedules import LearnedTemperature, LearnedTemperatures
from kd_lightning.tasks import Classification
from kd_lightning.transfer.crd import CRD
from kd_lightning.transfer.fitnet import FitNet
from kd_lightning.transfer.vid import VID


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    data = DigitsDataModule(batch_size=32, train_fraction=0.2)
    data.setup()
    return data


def module_of(data: DigitsDataModule, temperature: LearnedTemperature) -> DistillationModule:
    torch.manual_seed(0)
    transfer = {
        "crd": CRD(negatives=16, size=8, weight=0.1),
        "fitnet": FitNet(),
        "vid": VID(lr=0.1),
    }
    shape, classes = data.spec.input_shape, data.spec.num_classes
    return DistillationModule(
        StudentCNN,
        TeacherCNN(shape, classes, width=4),
        Objective(temperature=temperature, transfer=transfer),
        labels=data.labels,
        task=Classification(data.spec),
    )


def fit(
    module: DistillationModule, data: DigitsDataModule, epochs: int, **settings: Any
) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[ReseedEachEpoch(seed=0)],
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        **quiet,
    )
    trainer.fit(module, data, weights_only=True, **settings)
    return trainer


@pytest.mark.parametrize("learned", [LearnedTemperature, LearnedTemperatures])
def test_resumed_run_has_same_layers_banks_and_temperature(
    learned: type[LearnedTemperature], data: DigitsDataModule, tmp_path: Path
) -> None:
    whole, first, resumed = (module_of(data, learned(warm_up=1)) for _ in range(3))
    start = {k: v.clone() for k, v in whole.objective.state_dict().items()}
    fit(whole, data, epochs=2)
    fit(first, data, epochs=1).save_checkpoint(tmp_path / "x.ckpt")
    fit(resumed, data, epochs=2, ckpt_path=tmp_path / "x.ckpt")
    expected, found = whole.state_dict(), resumed.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    for name, value in start.items():  # and training had changed all of it
        assert not torch.equal(whole.objective.state_dict()[name], value), name
