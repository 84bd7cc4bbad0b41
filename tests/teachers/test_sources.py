"""Tests of where a teacher comes from, with an order that records what is requested of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.teachers.sources import (
    FromCheckpoint,
    FromStore,
    NoTeacher,
    TeacherSource,
    Untrained,
)


class FakeOrder:
    """An order for a linear network; its trainings and checkpoints are constants."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def build(self) -> nn.Module:
        self.calls.append(("build", None))
        return constant(0.0)

    def load(self, net: nn.Module, run_dir: Path) -> None:
        self.calls.append(("load", run_dir))
        assert (run_dir / "checkpoints" / "best.ckpt").is_file()
        net.load_state_dict(constant(1.0).state_dict())

    def given(self, paths: Sequence[str]) -> nn.Module:
        self.calls.append(("given", list(paths)))
        return constant(2.0)

    def key(self) -> str:
        self.calls.append(("key", None))
        return "Linear-abc"

    def train(self, home: Path) -> None:
        self.calls.append(("train", home))
        (home / "checkpoints").mkdir(parents=True)
        (home / "checkpoints" / "best.ckpt").touch()
        (home / "metrics.json").write_text("{}")


def constant(value: float) -> nn.Linear:
    net = nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
    return net


@pytest.fixture
def order() -> FakeOrder:
    return FakeOrder()


def value_of(net: nn.Module | None) -> float:
    assert isinstance(net, nn.Linear)
    return net.bias[0].item()


def test_store_trains_a_missing_teacher_only_when_weights_are_needed(
    order: FakeOrder, tmp_path: Path
) -> None:
    source = FromStore(str(tmp_path / "store"))
    net = source.network(order)
    assert order.calls == [("build", None)]
    assert not (tmp_path / "store").exists()
    home = tmp_path / "store" / "Linear-abc"
    assert source.find(order, net) == str(home)
    assert order.calls[1:] == [("key", None), ("train", home), ("load", home)]
    assert value_of(net) == 1.0


def test_store_finds_a_trained_teacher_again(order: FakeOrder, tmp_path: Path) -> None:
    for _ in range(2):
        source = FromStore(str(tmp_path))
        net = source.network(order)
        source.find(order, net)
        assert value_of(net) == 1.0
    assert [name for name, _ in order.calls].count("train") == 1


@pytest.mark.parametrize(
    ("path", "paths"),
    [("a.ckpt", ["a.ckpt"]), (["a.ckpt", "runs/b"], ["a.ckpt", "runs/b"]), ([Path("c")], ["c"])],
)
def test_checkpoints_are_read_at_once_and_named_in_the_record(
    order: FakeOrder, path: Any, paths: list[str]
) -> None:
    source = FromCheckpoint(path)
    net = source.network(order)
    assert order.calls == [("given", paths)]
    assert source.find(order, net) == ", ".join(paths)
    assert len(order.calls) == 1
    assert value_of(net) == 2.0


def test_untrained_teacher_keeps_its_weights(order: FakeOrder) -> None:
    source = Untrained()
    net = source.network(order)
    assert source.find(order, net) == ""
    assert order.calls == [("build", None)]
    assert value_of(net) == 0.0


def test_no_teacher_builds_nothing(order: FakeOrder) -> None:
    assert NoTeacher().network(order) is None
    assert order.calls == []


@pytest.mark.parametrize(
    ("source", "control"),
    [
        (FromStore("nowhere"), ""),
        (FromCheckpoint("x.ckpt"), ""),
        (Untrained(), "untrained"),
        (NoTeacher(), ""),
    ],
)
def test_only_the_untrained_teacher_makes_a_control(source: TeacherSource, control: str) -> None:
    assert source.control == control
