"""Tests of DistillationModule in short trainings: what learns, what stays, what is saved."""

import copy
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import same_weights
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.data.types import Batch
from kd_lightning.losses import correlation_congruence, soft_targets
from kd_lightning.modules import DistillationModule, TeacherModule
from kd_lightning.nets.mlp import MLP
from kd_lightning.objective import Objective
from kd_lightning.runs.checkpoints import AtomicCheckpointIO
from kd_lightning.tasks import Classification
from kd_lightning.teachers.cache import TeacherCache
from kd_lightning.transfer.crd import CRD
from kd_lightning.transfer.pairwise import Pairwise
from kd_lightning.utils.errors import UserError

Make = Callable[..., DistillationModule]


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    """A fifth of the digits: 259 for training, 9 batches."""
    data = DigitsDataModule(batch_size=32, train_fraction=0.2)
    data.setup()
    return data


def teacher() -> nn.Module:
    """A network with batch statistics and dropout, which training mode would change."""
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
        return DistillationModule(task=Classification(data.spec), **settings)

    return module


def trainer(**settings: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    settings = {"max_epochs": 2, "enable_checkpointing": False, **quiet, **settings}
    return L.Trainer(accelerator="cpu", num_sanity_val_steps=0, **settings)


class Meddler(L.Callback):
    """Puts the module into training mode before every step, and notes its teacher's mode."""

    def __init__(self) -> None:
        self.modes: set[bool] = set()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        pl_module.train()
        self.modes |= {m.training for m in pl_module.teacher.modules()}
        assert pl_module.student.training


def test_training_leaves_teacher_bitwise_unchanged(data: DigitsDataModule, make: Make) -> None:
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
def test_teacher_stays_in_evaluation_mode(make: Make, mode: bool) -> None:
    module = make().train(mode)
    assert module.student.training == mode
    batch = Batch(torch.randn(6, 1, 28, 28), torch.arange(6), torch.arange(6))
    first, second = (module.teacher_outputs(batch, "train")["logits"] for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    torch.testing.assert_close(first[:1], module.teacher(batch.inputs[:1]))  # nor batch statistics
    assert not first.requires_grad


def test_optimizer_holds_only_the_student(make: Make) -> None:
    module = make()
    optimizer: Any = module.configure_optimizers()
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in module.student.parameters()]


def test_training_equals_plain_torch_loop(data: DigitsDataModule, make: Make) -> None:
    module, reference = make(objective=Objective(alpha=0.3, temperature=2.0)), make()
    student, frozen = reference.student, teacher().eval()
    trainer(max_epochs=2).fit(module, data)
    optimizer = torch.optim.Adam(student.parameters())
    samples, (mean,), (std,) = data.splits["train"], data.spec.mean, data.spec.std
    x = (samples.inputs.float() / 255 - mean) / std
    for epoch in range(2):
        sampler = data.train_dataloader().sampler
        sampler.set_epoch(epoch)
        for index in sampler:
            with torch.no_grad():
                p_t = (frozen(x[index]) / 2).softmax(1)
            z_s = student(x[index])
            soft = F.kl_div((z_s / 2).log_softmax(1), p_t, reduction="batchmean") * 4
            optimizer.zero_grad()
            (0.7 * F.cross_entropy(z_s, samples.target[index]) + 0.3 * soft).backward()
            optimizer.step()
    for name, weight in student.state_dict().items():
        torch.testing.assert_close(module.student.state_dict()[name], weight, rtol=0, atol=1e-5)


def test_figures_equal_recomputation_in_float64(data: DigitsDataModule, make: Make) -> None:
    good_teacher = TeacherModule(MLP, task=Classification(data.spec))
    trainer(max_epochs=4).fit(good_teacher, data)
    module, run = make(teacher=good_teacher.net), trainer(max_epochs=3)
    run.fit(module, data)
    (figures,) = run.test(module, data, verbose=False)
    (inputs, target), (mean,), (std,) = data.splits["test"], data.spec.mean, data.spec.std
    x = (inputs.double() / 255 - mean) / std
    z_s, z_t = module.student.double()(x), good_teacher.net.double()(x)
    p_s, p_t = z_s.softmax(1), z_t.softmax(1)
    right, taught = z_s.argmax(1) == target, z_t.argmax(1) == target
    same = z_s.argmax(1) == z_t.argmax(1)
    expected = {
        "accuracy": right.double().mean(),
        "teacher_accuracy": taught.double().mean(),
        "agreement": same.double().mean(),
        "inherited_errors": same[~taught].double().mean(),
        "loss": F.cross_entropy(z_s, target),
        "kl_teacher": (p_t * (p_t / p_s).log()).sum(1).mean(),
        "kl_teacher_t": F.kl_div(
            (z_s / 5).log_softmax(1), (z_t / 5).softmax(1), reduction="batchmean"
        ),
    }
    found = {name: figures[f"test/{name}"] for name in expected}
    assert found == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-4)
    assert 0 < (~taught).sum() < len(target)  # the teacher errs, so inheritance is measured


def test_checkpoint_holds_plain_values_and_no_teacher(
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
    again.load_state_dict(checkpoint["state_dict"])
    torch.testing.assert_close(again.student.state_dict(), student, rtol=0, atol=0)
    torch.testing.assert_close(again.teacher.state_dict(), teacher().state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_checkpoint_of_other_layers_is_refused(make: Make, change: str) -> None:
    module, state = make(), make().state_dict()
    if change == "missing":
        del state["student.layers.1.bias"]
    else:
        state["student.layers.9.bias"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match=f"(?i){change} key"):
        module.load_state_dict(state)


def test_baseline_runs_teacher_only_for_evaluation(data: DigitsDataModule, make: Make) -> None:
    calls: list[bool] = []
    module = make(objective=Objective(alpha=0.0), cache=TeacherCache(None, max_bytes=0))
    module.teacher.register_forward_hook(lambda *_: calls.append(module.trainer.training))
    run = trainer(max_epochs=1)
    run.fit(module, data)
    batches = len(data.val_dataloader())
    assert calls == [False] * batches
    assert "val/agreement" in run.callback_metrics


def test_cache_is_filled_for_each_stage_of_the_datamodule(
    data: DigitsDataModule, make: Make
) -> None:
    term = Pairwise(correlation_congruence, "embedding", student="layers.1", teacher="1")
    module = make(objective=Objective(transfer={"cc": term}))
    assert module.outputs.cached == {}
    run = trainer(max_epochs=1)
    run.fit(module, data)
    assert module.outputs.cached.keys() == {"train", "val"}
    assert module.outputs.cached["train"].tables.keys() == {"logits", "1"}
    assert module.outputs.cached["val"].tables.keys() == {"logits"}
    trained = dict(module.outputs.cached)
    run.test(module, data, verbose=False)
    tested = module.outputs.cached
    assert tested.keys() == {"test"}  # looked up anew, in case the teacher has changed
    sizes = {k: cached.tables["logits"].shape for k, cached in {**tested, **trained}.items()}
    assert sizes == {split: (1, len(data.splits[split].target), 10) for split in sizes}


def test_other_datamodule_gets_tables_of_its_own(data: DigitsDataModule, make: Make) -> None:
    module, run = make(), trainer(max_epochs=1)
    run.fit(module, data)
    first = module.outputs.cached["val"]
    other = DigitsDataModule(batch_size=32, train_fraction=0.2, split_seed=1)
    run.validate(module, other, verbose=False)
    second = module.outputs.cached["val"]
    assert not torch.equal(first.tables["logits"], second.tables["logits"])
    inputs = torch.cat([x for *_, x in other.prepared("val").batches(torch.device("cpu"))])
    torch.testing.assert_close(second.tables["logits"][0], module.teacher(inputs))


class Plain(L.LightningDataModule):
    """The same digits as ``(x, y)`` without indices, labels, specification or views."""

    def __init__(self, data: DigitsDataModule) -> None:
        super().__init__()
        self.parts = {
            split: TensorDataset(
                torch.cat([x for *_, x in data.prepared(split).batches(torch.device("cpu"))]),
                data.splits[split].target,
            )
            for split in ("train", "val", "test")
        }

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts["train"], batch_size=32)

    def val_dataloader(self) -> Any:
        return DataLoader(self.parts["val"], batch_size=128)

    def test_dataloader(self) -> Any:
        return DataLoader(self.parts["test"], batch_size=128)


def test_batches_without_index_run_the_teacher_in_every_step(data: DigitsDataModule) -> None:
    plain, frozen = Plain(data), teacher()
    calls: list[int] = []
    frozen.register_forward_hook(lambda *_: calls.append(1))
    module = DistillationModule(MLP((1, 28, 28), 10), frozen)
    run = trainer(max_epochs=2)
    run.fit(module, plain)
    assert module.outputs.cached == {}
    assert len(calls) == 2 * (len(plain.train_dataloader()) + len(plain.val_dataloader()))
    (live,) = run.test(module, plain, verbose=False)
    (cached,) = run.test(module, data, verbose=False)
    assert module.outputs.cached.keys() == {"test"}
    assert live == pytest.approx(cached, rel=1e-5)


@pytest.mark.parametrize("lacks", ["class of every training sample", "position of each sample"])
def test_term_names_what_the_datamodule_lacks(data: DigitsDataModule, lacks: str) -> None:
    labels = data.labels if "position" in lacks else None
    objective = Objective(transfer={"crd": CRD(negatives=8)})
    module = DistillationModule(MLP((1, 28, 28), 10), teacher(), objective, labels=labels)
    with pytest.raises(UserError, match=rf"method\.transfer\.crd needs the {lacks}"):
        trainer(max_epochs=1).fit(module, Plain(data))


def test_validation_step_returns_predictions_of_both_networks(
    data: DigitsDataModule, make: Make
) -> None:
    found: list[dict[str, Any]] = []

    class Keep(L.Callback):
        def on_validation_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *_: Any):
            found.append(outputs)

    module = make()
    trainer(callbacks=[Keep()]).validate(module, data, verbose=False)
    assert found[0].keys() == {"logits", "target", "teacher", "temperature"}
    logits, target = (torch.cat([part[name] for part in found]) for name in ("logits", "target"))
    assert torch.equal(target, data.splits["val"].target)
    inputs = torch.cat([x for *_, x in data.prepared("val").batches(torch.device("cpu"))])
    torch.testing.assert_close(logits, module.student(inputs).detach())
    z_t = torch.cat([part["teacher"](7.0) for part in found])
    torch.testing.assert_close(z_t, module.teacher(inputs))
    assert {part["temperature"] for part in found} == {5.0}


def test_objective_that_needs_a_teacher_is_refused_without_one() -> None:
    with pytest.raises(UserError, match="this objective needs a teacher"):
        DistillationModule(MLP((1, 28, 28), 10))


def test_student_without_teacher_has_no_teacher_figures(data: DigitsDataModule) -> None:
    module = DistillationModule(MLP((1, 28, 28), 10), None, Objective(alpha=0.0))
    run = trainer(max_epochs=1)
    run.fit(module, data)
    (figures,) = run.test(module, data, verbose=False)
    assert not [name for name in figures if "teacher" in name or "agreement" in name]
    assert module.role == "baseline"


def nan_from(step: int) -> Callable[..., Tensor]:
    """A response loss that is NaN from a step on."""
    steps = 0

    def response(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
        nonlocal steps
        steps += 1
        return soft_targets(z_s, z_t, temperature) * (math.nan if steps >= step else 1)

    return response


@pytest.mark.parametrize("step", [1, 3, 9, 12])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_loss_that_is_not_finite_is_reported_with_step_and_terms(
    data: DigitsDataModule, make: Make, step: int, accumulate: int
) -> None:
    module = make(objective=Objective(response=nan_from(step)))
    message = rf"step {step}: loss=nan, hard=\d\S*, response=nan; try a lower optimizer\.lr"
    with pytest.raises(UserError, match=message):
        trainer(log_every_n_steps=5, accumulate_grad_batches=accumulate).fit(module, data)


def test_validation_loss_that_is_not_finite_is_reported(data: DigitsDataModule, make: Make) -> None:
    class NaNInEvaluation(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training else super().forward(x) / 0 * 0

    with pytest.raises(UserError, match=r"step 9: val/loss=nan; try a lower optimizer\.lr"):
        trainer().fit(make(student=NaNInEvaluation), data)


class Notes(DummyLogger):
    """Keeps logged training figures by step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if "train/loss" in metrics:
            assert step not in self.rows
            self.rows[step] = metrics


def test_terms_are_logged_after_each_interval_and_epoch(data: DigitsDataModule, make: Make) -> None:
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


def test_module_can_be_copied_after_training(data: DigitsDataModule, make: Make) -> None:
    """Callbacks such as weight averaging copy it, also before the test."""
    module, fitted = make(), trainer(max_epochs=1)
    fitted.fit(module, data)
    data.unpickled = threading.Lock()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        copied = copy.deepcopy(module)
    finally:
        del data.unpickled
    assert same_weights(copied.state_dict(), module.state_dict())
    assert copied.outputs.cache is module.outputs.cache  # which may hold gigabytes
