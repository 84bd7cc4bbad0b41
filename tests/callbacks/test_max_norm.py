"""Tests of max-norm regularisation."""

from typing import Any

import pytest
import torch
from conftest import Command

from kd_lightning.callbacks.max_norm import MaxNorm
from kd_lightning.compress.fake_quantize import fake_quantize
from kd_lightning.data.types import Batch
from kd_lightning.modules import TeacherModule
from kd_lightning.nets.mlp import MLP

ROWS = torch.tensor([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0], [0.0, 0.0, 0.0], [0.0, -2.0, 0.0]])


@pytest.fixture
def module() -> TeacherModule:
    made = TeacherModule(MLP((3,), 2, hidden=(4,)))
    with torch.no_grad():
        made.net.get_parameter("layers.1.weight").copy_(ROWS)
        made.net.get_parameter("layers.1.bias").fill_(9.0)
    return made


def step(module: TeacherModule, limit: float) -> None:
    nothing: Any = None
    batch = Batch(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), torch.zeros(1))
    MaxNorm(limit).on_train_batch_end(nothing, module, None, batch, 0)


def test_weights_of_quantised_layers_are_limited(module: TeacherModule) -> None:
    fake_quantize(module.net)
    step(module, limit=2.0)
    weight = module.net.get_parameter("layers.1.parametrizations.weight.original")
    assert float(weight.detach().norm(dim=1).max()) == pytest.approx(2.0)


def test_long_rows_are_scaled_to_the_limit(module: TeacherModule) -> None:
    step(module, limit=2.0)
    weight = module.net.get_parameter("layers.1.weight")
    expected = ROWS * torch.tensor([2 / 5, 1.0, 1.0, 1.0])[:, None]
    torch.testing.assert_close(weight.detach(), expected)
    assert weight.requires_grad
    assert module.net.get_parameter("layers.1.bias").tolist() == [9.0] * 4


def test_short_rows_are_unchanged(module: TeacherModule) -> None:
    before = {k: v.clone() for k, v in module.state_dict().items()}
    step(module, limit=100.0)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.slow
def test_limit_holds_through_training_and_is_part_of_the_teachers_key(
    command: Command, tmp_path: Any
) -> None:
    job = ("model=teacher", "net@teacher=mlp", "data=digits", "trainer.max_epochs=1")
    store = f"teacher_store={tmp_path}"
    for name, own in {
        "free": (),
        "tight": ("callbacks=[default,max_norm]", "callbacks.max_norm.limit=0.3"),
    }.items():
        done = command(*job, *own, store, f"hydra.run.dir={tmp_path / 'runs' / name}")
        assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("MLP-*"))) == 2
    state = torch.load(tmp_path / "runs/tight/checkpoints/last.ckpt", weights_only=True)
    for name, value in state["state_dict"].items():
        if name.startswith("net.") and name.endswith("weight"):
            assert value.norm(dim=1).max() <= 0.3 + 1e-6
