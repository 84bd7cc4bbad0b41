"""Which teacher a job asks for: whatever decides its weights makes it another one."""

import pytest
from hydra import compose, initialize_config_dir

from kd_lightning.cli.train import CONF
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.runs.pretrain import key_of, teacher_job

STOP = "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping"


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    data = DigitsDataModule()
    data.setup()
    return data


def key(data: DigitsDataModule, *typed: str, run_dir: str = "here") -> str:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = teacher_job(compose("train", ["data=digits", f"run_dir={run_dir}", *typed]))
    return key_of(job, data, world_size=1)


@pytest.mark.parametrize(
    "typed",
    [
        ("monitor=val/loss", "callbacks.best.mode=min"),
        ("callbacks.best.mode=min",),
        (STOP, "+callbacks.stop.monitor=val/accuracy"),
        ("pretrain.trainer.max_epochs=7",),
        ("pretrain.seed=1",),
        ("teacher.width=8",),
    ],
)
def test_what_decides_the_weights_is_in_the_key(
    data: DigitsDataModule, typed: tuple[str, ...]
) -> None:
    assert key(data, *typed) != key(data)


@pytest.mark.parametrize(
    "typed",
    [
        ("method=ce", "student.width=4", "seed=3", "trainer.max_epochs=9"),
        ("callbacks.pictures.samples=10", "callbacks.gradients.every_n_steps=0"),
        ("~callbacks.progress", "trainer.accelerator=cpu", "trainer.devices=2"),
        ("trainer.max_steps=5", "trainer.limit_train_batches=3", "trainer.max_time=1:00:00:00"),
    ],
)
def test_what_does_not_is_not(data: DigitsDataModule, typed: tuple[str, ...]) -> None:
    assert key(data, *typed) == key(data)


def test_where_a_run_lies_does_not_matter(data: DigitsDataModule) -> None:
    assert key(data, run_dir="there") == key(data)
