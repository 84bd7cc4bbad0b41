"""Tests of a teacher's key and order: it changes with all that determines the weights."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from kd_lightning.cli.paths import CONF
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.nets.cnn import TeacherCNN
from kd_lightning.nets.mlp import MLP
from kd_lightning.runs.directory import plain
from kd_lightning.runs.teacher import TeacherOrder, teacher_job
from kd_lightning.runs.teacher_key import key_of, shapes_result
from kd_lightning.utils.errors import UserError

STOP = "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping"


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    data = DigitsDataModule()
    data.setup()
    return data


@cache
def composed(*typed: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["data=digits", "run_dir=here", *typed])


def key(data: DigitsDataModule, *typed: str) -> str:
    return key_of(teacher_job(composed(*typed)), data, world_size=1)


@pytest.mark.parametrize(
    "typed",
    [
        ("monitor=val/loss", "monitor_mode=min"),
        ("monitor_mode=min",),
        ("callbacks=[default,max_norm]",),
        (STOP, "+callbacks.stop.monitor=val/accuracy"),
        ("pretrain.trainer.max_epochs=7",),
        ("pretrain.seed=1",),
        ("teacher.width=8",),
    ],
)
def test_what_determines_the_weights_is_in_the_key(
    data: DigitsDataModule, typed: tuple[str, ...]
) -> None:
    assert key(data, *typed) != key(data)


@pytest.mark.parametrize(
    "typed",
    [
        ("method=ce", "student.width=4", "seed=3", "trainer.max_epochs=9"),
        ("callbacks.pictures.samples=10", "callbacks.gradients.every_n_steps=0"),
        ("callbacks=[default,temperature_curves]", "~callbacks.last", "~callbacks.learning_rate"),
        ("~callbacks.progress", "trainer.accelerator=cpu", "trainer.devices=2"),
        ("trainer.max_steps=5", "trainer.limit_train_batches=3", "trainer.max_time=1:00:00:00"),
    ],
)
def test_what_does_not_is_not_in_the_key(data: DigitsDataModule, typed: tuple[str, ...]) -> None:
    assert key(data, *typed) == key(data)


def test_run_directory_is_not_in_the_key(data: DigitsDataModule) -> None:
    assert key(data, "run_dir=there") == key(data)


def test_number_of_processes_is_in_the_key(data: DigitsDataModule) -> None:
    # each step of two processes takes twice as many samples
    one, two = (key_of(teacher_job(composed()), data, world_size=n) for n in (1, 2))
    assert one != two


class Silent:
    """A callback that does not say whether it shapes the result."""


class Watching(Silent):
    shapes_result = False


@pytest.mark.parametrize(
    ("callback", "shapes"),
    [
        ({"_target_": f"{__name__}.Silent"}, True),
        ({"_target_": f"{__name__}.Watching"}, False),
        ({"_target_": "kd_lightning.callbacks.watching.LastCheckpoint"}, False),
        ({"_target_": "kd_lightning.callbacks.watching.LearningRate"}, False),
        ({"_target_": "kd_lightning.callbacks.watching.ProgressBar"}, False),
        ({"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"}, True),
        ({"_target_": "kd_lightning.callbacks.reseed.ReseedEachEpoch"}, True),
        ({"_target_": "kd_lightning.callbacks.max_norm.MaxNorm"}, True),
        ({"limit": 2.0}, True),
        (None, True),
    ],
)
def test_callback_shapes_the_result_unless_its_class_denies_it(callback: Any, shapes: bool) -> None:
    assert shapes_result(callback) is shapes


def test_default_callbacks_that_shape_the_result() -> None:
    callbacks = plain(composed().callbacks)
    assert {name for name, c in callbacks.items() if shapes_result(c)} == {"best", "reseed"}


def test_unknown_callback_changes_the_key(data: DigitsDataModule) -> None:
    silent = f"+callbacks.mine._target_={__name__}.Silent"
    watching = f"+callbacks.mine._target_={__name__}.Watching"
    assert key(data, silent) != key(data) == key(data, watching)


def order_of(data: DigitsDataModule, *typed: str, train: Any = None) -> TeacherOrder:
    return TeacherOrder(composed(*typed), data, data.spec, train)


def test_order_builds_the_configured_network(data: DigitsDataModule) -> None:
    net = order_of(data, "net@teacher=mlp", "teacher.hidden=[7]").build()
    assert isinstance(net, MLP)
    assert [p.shape[0] for p in net.parameters()] == [7, 7, 10, 10]


def test_order_trains_in_the_given_directory_and_resumes_there(
    data: DigitsDataModule, tmp_path: Path
) -> None:
    jobs: list[DictConfig] = []
    order = order_of(data, "seed=5", "pretrain.trainer.max_epochs=3", train=jobs.append)
    order.train(tmp_path / "new")
    (tmp_path / "begun").mkdir()
    order.train(tmp_path / "begun")
    new, begun = jobs
    assert (new.run_dir, new.resume) == (str(tmp_path / "new"), None)
    assert (begun.run_dir, begun.resume) == (str(tmp_path / "begun"),) * 2
    assert (new.seed, new.trainer.max_epochs, new.teacher_ckpt) == (0, 3, None)
    assert plain(new.model)["_target_"] == "kd_lightning.modules.TeacherModule"


def saved(data: DigitsDataModule, path: Path, **spec: Any) -> TeacherCNN:
    """A teacher with a checkpoint, trained on data as specified."""
    torch.manual_seed(3)
    net = TeacherCNN(data.spec.input_shape, data.spec.num_classes, width=2)
    state = {f"net.{name}": weight for name, weight in net.state_dict().items()}
    described = {**data.spec.plain(), **spec}
    torch.save({"state_dict": state, "network": "net", "spec": described}, path)
    return net


def test_order_loads_a_given_checkpoint(
    data: DigitsDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = saved(data, tmp_path / "x.ckpt").state_dict()
    with caplog.at_level(logging.WARNING):
        found = order_of(data, "teacher.width=2").given([str(tmp_path / "x.ckpt")])
    torch.testing.assert_close(found.state_dict(), expected, rtol=0, atol=0)
    assert caplog.records == []


def test_order_warns_of_a_teacher_of_otherwise_normalised_images(
    data: DigitsDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(data, tmp_path / "x.ckpt", mean=[0.9])
    with caplog.at_level(logging.WARNING):
        order_of(data, "teacher.width=2").given([str(tmp_path / "x.ckpt")])
    (record,) = caplog.records
    assert f"{tmp_path}/x.ckpt was trained on images of mean [0.9]" in record.getMessage()


def test_order_refuses_a_checkpoint_of_another_network(
    data: DigitsDataModule, tmp_path: Path
) -> None:
    saved(data, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt holds another network than TeacherCNN"):
        order_of(data, "teacher.width=4").given([str(tmp_path / "x.ckpt")])


def test_each_of_several_teachers_needs_a_run_directory(
    data: DigitsDataModule, tmp_path: Path
) -> None:
    saved(data, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"teacher_ckpt: \S+x\.ckpt lies in no run directory"):
        order_of(data).given([str(tmp_path / "x.ckpt")] * 2)
