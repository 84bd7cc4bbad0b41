"""Tests of the Python API as a Lightning user meets it: no Hydra, no factory, no specification."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import run_script
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kd_lightning import DistillationModule, MutualModule, Objective, TeacherCache, TeacherModule
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.data.types import Batch, as_batch
from kd_lightning.losses import permuted_soft_targets, similarity
from kd_lightning.schedules import LearnedTemperatures, linear
from kd_lightning.transfer.crd import CRD
from kd_lightning.transfer.fitnet import FitNet
from kd_lightning.transfer.pairwise import Pairwise
from kd_lightning.utils.errors import UserError

# Lightning's advice on the loaders that these tests pass.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Your `.*_dataloader`'s sampler has shuffling"),
    pytest.mark.filterwarnings("ignore:`Trainer.*max_epochs=0"),
]

CLASSES, SIZE = 5, 96


def network(width: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, CLASSES),
    )


@pytest.fixture(scope="module")
def samples() -> TensorDataset:
    """Images whose class is written into their brightness."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (SIZE,), generator=random)
    x = torch.randn(SIZE, 1, 6, 6, generator=random) + y.view(-1, 1, 1, 1)
    return TensorDataset(x, y)


@pytest.fixture
def loader(samples: TensorDataset) -> DataLoader[Any]:
    return DataLoader(samples, batch_size=16, shuffle=True)


def trainer(**settings: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    usual = {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, **quiet}
    return L.Trainer(**{**usual, **settings})


def test_a_plain_loader_trains_validates_tests_and_loads_again(
    loader: DataLoader[Any], samples: TensorDataset, tmp_path: Path
) -> None:
    teacher = network(8, seed=1)
    module = DistillationModule(network(4), teacher, Objective(temperature=4.0, alpha=0.9))
    run = trainer(max_epochs=3, enable_checkpointing=True, default_root_dir=tmp_path)
    run.fit(module, loader, DataLoader(samples, batch_size=40))
    x, y = samples.tensors
    for split, figures in (
        ("val", run.validate(module, DataLoader(samples, batch_size=40), verbose=False)),
        ("test", run.test(module, DataLoader(samples, batch_size=40), verbose=False)),
    ):
        with torch.no_grad():
            z_s, z_t = module.student.double()(x.double()), module.teacher.double()(x.double())
        module.float()
        found = figures[0]
        assert found[f"{split}/accuracy"] == pytest.approx((z_s.argmax(1) == y).double().mean())
        agreement = (z_s.argmax(1) == z_t.argmax(1)).double().mean()
        assert found[f"{split}/agreement"] == pytest.approx(agreement)
        assert found[f"{split}/loss"] == pytest.approx(F.cross_entropy(z_s, y).item(), rel=1e-5)
    probabilities = torch.cat(run.predict(module, DataLoader(samples, batch_size=40)))
    torch.testing.assert_close(probabilities.double(), z_s.softmax(1), rtol=1e-4, atol=1e-5)
    again = DistillationModule.load_from_checkpoint(
        run.checkpoint_callback.best_model_path, student=network(4, seed=9), teacher=teacher
    )
    for name, weight in module.student.state_dict().items():
        assert torch.equal(again.student.state_dict()[name], weight)


def test_a_checkpoint_of_another_student_is_refused(
    loader: DataLoader[Any], tmp_path: Path
) -> None:
    run = trainer()
    run.fit(DistillationModule(network(4), network(8)), loader)
    run.save_checkpoint(tmp_path / "x.ckpt")
    other = nn.Sequential(network(4), nn.Linear(CLASSES, CLASSES))
    with pytest.raises(RuntimeError, match=r"Missing key.*student"):
        DistillationModule.load_from_checkpoint(
            tmp_path / "x.ckpt", student=other, teacher=network(8)
        )


class Dictionaries(Dataset[Any]):
    """Samples as Hugging Face's datasets give them."""

    def __init__(self, samples: TensorDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        x, y = self.samples[i]
        return {"pixels": x, "labels": y}


class Foreign(nn.Module):
    """A network that takes its inputs by name and returns them in one of the usual forms."""

    def __init__(self, width: int, form: str) -> None:
        super().__init__()
        self.net, self.form = network(width), form

    def forward(self, pixels: Tensor) -> Any:
        z = self.net(pixels)
        forms = {"object": SimpleNamespace(logits=z), "dictionary": {"logits": z}, "tuple": (z, 1)}
        return forms[self.form]


@pytest.mark.parametrize("form", ["object", "dictionary", "tuple"])
def test_dictionary_batches_and_foreign_outputs(form: str, samples: TensorDataset) -> None:
    found = []
    for student, data in (
        (network(4), samples),
        (Foreign(4, form), Dictionaries(samples)),
    ):
        teacher = network(8, seed=1) if data is samples else Foreign(8, "object")
        if isinstance(teacher, Foreign):
            teacher.net.load_state_dict(network(8, seed=1).state_dict())
        module = DistillationModule(student, teacher, Objective(temperature=2.0))
        trainer(max_epochs=2).fit(module, DataLoader(data, batch_size=32))
        found.append(list(module.student.state_dict().values()))
    for plain, foreign in zip(*found, strict=True):
        assert torch.equal(plain, foreign)


def test_a_subclass_configures_its_own_optimizer(loader: DataLoader[Any]) -> None:
    class Mine(DistillationModule):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.student.parameters(), lr=0.05)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)]

    run = trainer(max_epochs=2)
    run.fit(Mine(network(4), network(8)), loader)
    assert isinstance(run.optimizers[0], torch.optim.SGD)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0005)


def test_optimizer_and_schedule_by_argument(loader: DataLoader[Any]) -> None:
    module = TeacherModule(
        network(4),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
    )
    run = trainer(max_epochs=3)
    run.fit(module, loader)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.125)


def test_terms_schedules_and_learned_temperatures_by_argument(
    loader: DataLoader[Any], tmp_path: Path
) -> None:
    def made() -> DistillationModule:
        terms = {"hint": FitNet("1", "1"), "sp": Pairwise(similarity, weight=linear(0, 2, 4))}
        objective = Objective(temperature=LearnedTemperatures(hidden=4), transfer=terms)
        return DistillationModule(network(4), network(8), objective)

    module = made()
    run = trainer(max_epochs=2)
    run.fit(module, loader)
    held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    built = [*module.objective.parameters(), *module.student.parameters()]
    assert held == {id(p) for p in built}
    assert len(list(module.objective.parameters())) > 2
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert run.callback_metrics["train/weight_sp"] == pytest.approx(2 * 11 / 6 / 4)

    # Layers of terms are made when training starts; loaded weights wait for them.
    again = DistillationModule.load_from_checkpoint(
        tmp_path / "x.ckpt",
        student=network(4),
        teacher=network(8),
        objective=made().objective,
    )
    saved = {k: v.clone() for k, v in module.objective.state_dict().items()}
    trainer(max_epochs=0).fit(again, loader)
    torch.testing.assert_close(dict(again.objective.state_dict()), saved, rtol=0, atol=0)


def test_looking_at_a_batch_does_not_change_the_order_of_samples(
    loader: DataLoader[Any], samples: TensorDataset
) -> None:
    found = []
    for looks in (True, False):
        terms = {"sp": Pairwise(similarity)}  # without layers of its own, which draw numbers
        module = DistillationModule(network(4), network(8), Objective(transfer=terms))
        if not looks:
            x, y = samples.tensors
            module._build_objective(Batch(x[:16], y[:16]))
        order: list[Tensor] = []

        class Seen(L.Callback):
            def on_train_batch_start(self, *args: Any, order: list[Tensor] = order) -> None:
                order.append(args[2][1])

        torch.manual_seed(3)
        trainer(callbacks=[Seen()]).fit(module, loader)
        found.append(torch.cat(order))
    assert torch.equal(*found)


def test_several_teachers_are_an_ensemble(loader: DataLoader[Any], samples: TensorDataset) -> None:
    teachers = [network(8, seed=s) for s in range(3)]
    module = DistillationModule(network(4), teachers, Objective(temperature=3.0))
    x, y = samples.tensors
    response = module.terms(Batch(x, y))["response"]
    p = torch.stack([(t(x) / 3).softmax(1) for t in teachers]).mean(0)
    q = (module.student(x) / 3).softmax(1)
    torch.testing.assert_close(response, 9 * (p * (p / q).log()).sum(1).mean())
    trainer().fit(module, loader)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            lambda: Objective(transfer={"crd": CRD(negatives=4)}),
            "needs the class of every training",
        ),
        (lambda: Objective(response=permuted_soft_targets), "needs the position of each sample"),
    ],
)
def test_what_a_batch_does_not_carry_is_one_line(
    objective: Any, message: str, loader: DataLoader[Any]
) -> None:
    module = DistillationModule(network(4), network(8), objective())
    with pytest.raises(UserError, match=message) as error:
        trainer().fit(module, loader)
    assert "\n" not in str(error.value)


def test_crd_with_labels_still_needs_the_index(
    loader: DataLoader[Any], samples: TensorDataset
) -> None:
    objective = Objective(transfer={"crd": CRD(negatives=4)})
    module = DistillationModule(network(4), network(8), objective, labels=samples.tensors[1])
    with pytest.raises(UserError, match=r"transfer\.crd needs the position of each sample"):
        trainer().fit(module, loader)


class WithIndex(Dataset[Batch]):
    def __init__(self, samples: TensorDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        x, y = self.samples[i]
        return {"pixels": x, "labels": y, "index": i}


def test_crd_runs_on_dictionaries_with_an_index(samples: TensorDataset) -> None:
    objective = Objective(transfer={"crd": CRD(negatives=4, size=8)})
    teacher = Foreign(8, "object")
    module = DistillationModule(Foreign(4, "tuple"), teacher, objective, labels=samples.tensors[1])
    trainer(max_epochs=2).fit(module, DataLoader(WithIndex(samples), batch_size=16))
    term: Any = module.objective.transfer["crd"]
    term._remember()
    moved = (term.bank_s.norm(dim=1) - 1).abs() < 1e-5  # rows are normalised once they are seen
    assert moved.all()


def test_batches_may_be_collated_by_torch(samples: TensorDataset) -> None:
    collated = next(iter(DataLoader([Batch(*samples[i], i) for i in range(8)], batch_size=4)))
    batch = as_batch(collated)
    assert batch.share == 1.0
    assert batch.index is not None
    assert batch.index.tolist() == [0, 1, 2, 3]
    trainer().fit(
        DistillationModule(network(4), network(8)),
        DataLoader([Batch(*samples[i], i) for i in range(8)], batch_size=4),
    )


def test_our_datamodules_switch_the_cache_on() -> None:
    data = DigitsDataModule(train_fraction=0.2, batch_size=64)
    ran = 0

    def count(*_: Any) -> None:
        nonlocal ran
        ran += 1

    def nets() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        return tuple(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)) for _ in range(2))

    student, teacher = nets()
    module = DistillationModule(student, teacher)
    teacher.register_forward_hook(count)
    trainer(max_epochs=4).fit(module, data)
    assert set(module.outputs.cached) == {"train", "val"}
    once = ran
    trainer(max_epochs=3).fit(module, data)
    assert ran == once
    student, teacher = nets()
    live = DistillationModule(student, teacher, cache=TeacherCache(None, max_bytes=0))
    trainer(max_epochs=4).fit(live, data)
    again = DistillationModule(*nets())
    trainer(max_epochs=4).fit(again, data)
    torch.testing.assert_close(
        dict(live.state_dict()), dict(again.state_dict()), rtol=1e-5, atol=1e-6
    )


def test_another_datamodule_never_reads_the_first_ones_outputs() -> None:
    small, other = DigitsDataModule(train_fraction=0.2), DigitsDataModule(split_seed=1)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(784, 10)) for _ in range(2)]
    module = DistillationModule(*nets)
    trainer().fit(module, small)
    (figures,) = trainer().validate(module, other, verbose=False)
    live = DistillationModule(*nets, cache=TeacherCache(None, max_bytes=0))
    (expected,) = trainer().validate(live, other, verbose=False)
    assert figures["val/agreement"] == pytest.approx(expected["val/agreement"])
    assert figures["val/kl_teacher"] == pytest.approx(expected["val/kl_teacher"], rel=1e-4)


def test_fit_works_again_after_validate(loader: DataLoader[Any]) -> None:
    module, run = DistillationModule(network(4), network(8)), trainer()
    run.fit(module, loader, loader)
    run.validate(module, loader, verbose=False)
    trainer().fit(module, loader, loader)


def test_several_dataloaders_at_once_are_one_line(loader: DataLoader[Any]) -> None:
    module = DistillationModule(network(4), network(8))
    with pytest.raises(UserError, match="several test dataloaders at once"):
        trainer().test(module, [loader, loader], verbose=False)


def test_mutual_learning_of_ready_made_networks(loader: DataLoader[Any]) -> None:
    module = MutualModule({"first": network(4), "second": network(8, seed=1)})
    before = [net[0].weight.clone() for net in module.students.values()]
    run = trainer()
    run.fit(module, loader)
    (figures,) = run.test(module, loader, verbose=False)
    assert {"test/accuracy", "test/accuracy_second"} <= figures.keys()
    assert not any(
        torch.equal(b, n[0].weight) for b, n in zip(before, module.students.values(), strict=True)
    )


def test_no_teacher_is_needed_on_labels_alone(loader: DataLoader[Any]) -> None:
    module = DistillationModule(network(4), objective=Objective(alpha=0.0))
    run = trainer()
    run.fit(module, loader, loader)
    assert module.role == "baseline"
    assert "val/agreement" not in run.callback_metrics
    with pytest.raises(UserError, match="this objective needs a teacher"):
        DistillationModule(network(4))


@pytest.mark.parametrize("batch", [torch.zeros(3), (1, 2, 3), {"x": torch.zeros(3)}, "text"])
def test_a_batch_without_labels_is_one_line(batch: Any) -> None:
    with pytest.raises(UserError, match="cannot tell inputs from labels") as error:
        as_batch(batch)
    assert "\n" not in str(error.value)


def test_a_network_without_logits_is_one_line(loader: DataLoader[Any]) -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"features": x}

    with pytest.raises(UserError, match="Silent returns a dict without logits"):
        trainer().fit(DistillationModule(network(4), Silent()), loader)


SCRIPT = """
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from kd_lightning import DistillationModule, Objective

def network(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 3))

if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.randn(60, 1, 4, 4)
    data = TensorDataset(x, (x.sum((1, 2, 3)) > 0).long())
    module = DistillationModule(network(4), network(16), Objective(temperature=4.0, alpha=0.9))
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", devices=2, enable_progress_bar=False)
    trainer.fit(module, DataLoader(data, batch_size=10), DataLoader(data, batch_size=10))
    (figures,) = trainer.test(module, DataLoader(data, batch_size=10), verbose=False)
    if trainer.is_global_zero:
        right = (module.student(x).argmax(1) == data.tensors[1]).float().mean()
        print(f"accuracy {figures['test/accuracy']:.6f} {right:.6f}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "dictionary", "subclass"])
def test_the_script_of_the_readme_on_two_processes(form: str, tmp_path: Path) -> None:
    script = SCRIPT
    if form == "dictionary":
        script = script.replace(
            "data = TensorDataset(x, (x.sum((1, 2, 3)) > 0).long())",
            "data = [{'input': a, 'labels': (a.sum() > 0).long()} for a in x]",
        ).replace("data.tensors[1]", "torch.stack([d['labels'] for d in data])")
    if form == "subclass":
        script = script.replace(
            "def network",
            "class Mine(DistillationModule):\n"
            "    def configure_optimizers(self):\n"
            "        return torch.optim.SGD(self.student.parameters(), lr=0.1)\n\n"
            "def network",
        ).replace("module = DistillationModule", "module = Mine")
    (tmp_path / "mine.py").write_text(script)
    printed = run_script(tmp_path / "mine.py", cwd=tmp_path)
    (line,) = [line for line in printed.splitlines() if line.startswith("accuracy")]
    _, logged, computed = line.split()
    assert logged == computed
