"""Tests of distillation in a real training: what learns, what stays, what is kept and told."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.data.types import Batch
from kd_lightning.losses import soft_targets
from kd_lightning.modules import DistillationModule, TeacherModule
from kd_lightning.nets.mlp import MLP
from kd_lightning.objective import Objective
from kd_lightning.runs.checkpoints import AtomicCheckpointIO
from kd_lightning.utils.errors import UserError

Make = Callable[..., DistillationModule]


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    """A fifth of the digits: 259 for training, 9 batches."""
    data = DigitsDataModule(batch_size=32, train_fraction=0.2)
    data.setup()
    return data


def teacher() -> nn.Module:
    """A network with everything that training mode would change."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 10),
    )


@pytest.fixture
def make(data: DigitsDataModule) -> Make:
    def module(**settings: Any) -> DistillationModule:
        torch.manual_seed(2)
        settings = {"objective": Objective(), "teacher": teacher(), "student": MLP, **settings}
        return DistillationModule(spec=data.spec, **settings)

    return module


def trainer(**settings: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    settings = {"max_epochs": 2, "enable_checkpointing": False, **quiet, **settings}
    return L.Trainer(accelerator="cpu", num_sanity_val_steps=0, **settings)


class Meddler(L.Callback):
    """Puts the module into training mode before every step, and looks at its teacher."""

    def __init__(self) -> None:
        self.modes: set[bool] = set()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        pl_module.train()
        self.modes |= {m.training for m in pl_module.teacher.modules()}
        assert pl_module.student.training


def test_the_teacher_is_bitwise_the_same_after_training(data: DigitsDataModule, make: Make) -> None:
    module, meddler = make(), Meddler()
    before = {k: v.clone() for k, v in module.teacher.state_dict().items()}
    assert any("running_mean" in k for k in before)
    run = trainer(callbacks=[meddler])
    run.fit(module, data)
    run.test(module, data, verbose=False)
    assert meddler.modes == {False}
    for name, value in module.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in module.teacher.parameters())


@pytest.mark.parametrize("mode", [True, False])
def test_the_teacher_stays_in_evaluation_mode(make: Make, mode: bool) -> None:
    module = make().train(mode)
    assert module.student.training == mode
    batch = Batch(torch.randn(6, 1, 28, 28), torch.arange(6), torch.arange(6))
    first, second = (module.teacher_outputs(batch, "train")["logits"] for _ in range(2))
    assert torch.equal(first, second)  # no unit is dropped
    torch.testing.assert_close(first[:1], module.teacher(batch.inputs[:1]))  # nor is it the batch
    assert not first.requires_grad


def test_the_optimizer_holds_the_student_alone(make: Make) -> None:
    module = make()
    optimizer: Any = module.configure_optimizers()
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in module.student.parameters()]


def test_the_student_learns(data: DigitsDataModule, make: Make) -> None:
    well_taught = TeacherModule(MLP, data.spec)
    trainer(max_epochs=5).fit(well_taught, data)
    module = make(teacher=well_taught.net)
    samples = data.splits["test"]
    batch = Batch(samples.inputs, samples.target, torch.arange(len(samples.target)))
    batch = data.on_after_batch_transfer(batch, 0)

    def loss() -> float:
        with torch.no_grad():
            return module.terms(batch)["loss"].item()

    before = loss()
    run = trainer()
    run.fit(module, data)
    assert loss() < before / 2
    run.test(module, data, verbose=False)
    figures = {k: v.item() for k, v in run.callback_metrics.items()}
    right = module.student(batch.inputs).argmax(1) == batch.target
    same = module.student(batch.inputs).argmax(1) == module.teacher(batch.inputs).argmax(1)
    assert figures["test/accuracy"] == pytest.approx(right.float().mean().item())
    assert figures["test/agreement"] == pytest.approx(same.float().mean().item())
    assert figures["test/accuracy"] > 0.5


def test_a_checkpoint_holds_plain_values_and_no_teacher(
    data: DigitsDataModule, make: Make, tmp_path: Path
) -> None:
    module = make()
    run = trainer(max_epochs=1, plugins=[AtomicCheckpointIO()])
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert checkpoint["network"] == "student"
    assert checkpoint["spec"] == data.spec.plain()
    student = module.student.state_dict()
    assert set(checkpoint["state_dict"]) == {f"student.{k}" for k in student}
    again = make(teacher=teacher())
    again.load_state_dict(checkpoint["state_dict"], strict=again.strict_loading)
    torch.testing.assert_close(again.student.state_dict(), student, rtol=0, atol=0)


def test_the_teacher_is_not_asked_in_training_without_a_weight(
    data: DigitsDataModule, make: Make
) -> None:
    asked = 0

    def count(*_: Any) -> None:
        nonlocal asked
        asked += module.trainer.training

    module = make(objective=Objective(alpha=0.0))
    module.teacher.register_forward_hook(count)
    run = trainer(max_epochs=1)
    run.fit(module, data)
    assert asked == 0
    assert "val/agreement" in run.callback_metrics  # in validation it is


def spoilt_from(step: int) -> Callable[..., Tensor]:
    """A response loss that is not a number from one step on."""
    steps = 0

    def response(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
        nonlocal steps
        steps += 1
        return soft_targets(z_s, z_t, temperature) * (math.nan if steps >= step else 1)

    return response


@pytest.mark.parametrize("step", [1, 3, 9, 12])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_loss_that_is_not_finite_names_its_step_and_terms(
    data: DigitsDataModule, make: Make, step: int, accumulate: int
) -> None:
    module = make(objective=Objective(response=spoilt_from(step)))
    told = rf"step {step}: loss=nan, hard=\d\S*, response=nan; try a lower optimizer\.lr"
    with pytest.raises(UserError, match=told):
        trainer(log_every_n_steps=5, accumulate_grad_batches=accumulate).fit(module, data)


def test_validation_that_is_not_finite_is_told(data: DigitsDataModule, make: Make) -> None:
    class Blind(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training else super().forward(x) / 0 * 0

    with pytest.raises(UserError, match=r"step 9: val/loss=nan; try a lower optimizer\.lr"):
        trainer().fit(make(student=Blind), data)


class Notes(DummyLogger):
    """Keeps what is logged of the training, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if "train/loss" in metrics:
            assert step not in self.rows
            self.rows[step] = metrics


def test_every_interval_and_the_end_of_each_epoch_are_logged(
    data: DigitsDataModule, make: Make
) -> None:
    seen: list[dict[str, Tensor]] = []

    class Watched(Objective):
        def forward(self, *outputs: Any, **settings: Any) -> dict[str, Tensor]:
            seen.append(super().forward(*outputs, **settings))
            return seen[-1]

    notes = Notes()
    run = trainer(logger=notes, log_every_n_steps=4, max_epochs=2)
    run.fit(make(objective=Watched(alpha=0.3, temperature=2.0)), data)
    assert list(notes.rows) == [3, 7, 8, 12, 16, 17]  # two epochs of 9 steps
    assert [row["epoch"] for row in notes.rows.values()] == [0, 0, 0, 1, 1, 1]
    for first, last in [(0, 3), (4, 7), (8, 8), (9, 12), (13, 16), (17, 17)]:
        row = notes.rows[last]
        for name in ("loss", "hard", "response"):
            expected = torch.stack([terms[name] for terms in seen[first : last + 1]]).mean()
            assert row[f"train/{name}"] == pytest.approx(expected.item(), rel=1e-6)
        assert row["train/alpha"] == 0.3
        assert row["train/temperature"] == 2.0
