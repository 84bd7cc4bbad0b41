"""Tests of what is built from a configuration and a datamodule of the user's own."""

from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.cli.paths import CONF
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.data.types import ImageSpec
from kd_lightning.runs.build import build_source, shared_cache, spec_of
from kd_lightning.teachers.sources import (
    FromCheckpoint,
    FromStore,
    NoTeacher,
    TeacherSource,
    Untrained,
)
from kd_lightning.utils.errors import UserError


def composed(*typed: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["data=digits", "run_dir=here", *typed])


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ((), FromStore),
        (("teacher_from=none",), NoTeacher),
        (("teacher_from=untrained",), Untrained),
        (("method=untrained",), Untrained),
        (("teacher_from=checkpoint", "teacher_from.path=x.ckpt"), FromCheckpoint),
        (("teacher_ckpt=x.ckpt",), FromCheckpoint),
        (("model=teacher",), NoTeacher),
        (("method=mutual",), NoTeacher),
    ],
)
def test_source_of_each_command(typed: tuple[str, ...], kind: type[TeacherSource]) -> None:
    assert type(build_source(composed(*typed))) is kind


@pytest.mark.parametrize("typed", ["teacher_from=untrained", "method=untrained"])
def test_two_sources_of_a_teacher_are_refused(typed: str) -> None:
    with pytest.raises(UserError, match=r"teacher_ckpt=x\.ckpt and .* two sources of the teacher"):
        build_source(composed("teacher_ckpt=x.ckpt", typed))


@pytest.mark.parametrize(
    ("value", "paths"),
    [("a", ["a"]), ("[a,b]", ["a", "b"]), ("outputs/2026/1", ["outputs/2026/1"])],
)
def test_teacher_ckpt_is_short_for_teacher_from_checkpoint(value: str, paths: list[str]) -> None:
    short = build_source(composed(f"teacher_ckpt={value}"))
    long = build_source(composed("teacher_from=checkpoint", f"teacher_from.path={value}"))
    assert isinstance(short, FromCheckpoint)
    assert isinstance(long, FromCheckpoint)
    assert short.paths == long.paths == paths


class Foreign(L.LightningDataModule):
    """Pairs of inputs and labels; nothing else is known of them."""

    def __init__(self, x: Any, y: Tensor) -> None:
        super().__init__()
        self.x, self.y = x, y

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x, self.y), batch_size=4, shuffle=True)


def test_specification_is_read_off_the_batches() -> None:
    data = Foreign(torch.zeros(9, 3, 5, 7), torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 6]))
    assert spec_of(data) == ImageSpec((3, 5, 7), 7, (), ())


def test_number_of_classes_may_be_given() -> None:
    data = Foreign(torch.zeros(9, 3, 5, 7), torch.arange(9) % 2)
    data.num_classes = 4
    assert spec_of(data).num_classes == 4


def test_reading_the_batches_leaves_random_numbers_as_they_were() -> None:
    data = Foreign(torch.zeros(9, 3, 5, 7), torch.arange(9))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    spec_of(data)
    assert torch.equal(torch.rand(3), expected)


def test_own_specification_is_taken_as_it_is() -> None:
    data = DigitsDataModule()
    data.setup()
    assert spec_of(data) is data.spec


def test_inputs_by_name_need_a_specification() -> None:
    class Named(Foreign):
        def train_dataloader(self) -> Any:
            return [{"input_ids": self.x, "labels": self.y}]

    with pytest.raises(UserError, match="Named needs a `spec`: see kd_lightning"):
        spec_of(Named(torch.zeros(4, 3), torch.arange(4)))


def test_jobs_of_equal_settings_share_a_cache() -> None:
    first, same, other = (
        shared_cache(composed(*typed)) for typed in ((), ("seed=1",), ("cache.dtype=float16",))
    )
    assert first is same
    assert first is not other
