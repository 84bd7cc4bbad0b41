"""Tests of mutual learning: what each student minimises, and what a finished run contains."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import Command, accuracy, read_facts, read_metrics, recompute
from hydra import compose, initialize_config_dir
from torch import Tensor

from kd_lightning import load_run
from kd_lightning.cli.paths import CONF
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.data.types import Batch, ImageSpec
from kd_lightning.losses import soft_targets
from kd_lightning.modules import MutualModule
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.nets.mlp import MLP
from kd_lightning.objective import Objective
from kd_lightning.runs.build import make
from kd_lightning.runs.checkpoints import read_checkpoint
from kd_lightning.runs.directory import plain
from kd_lightning.runs.record import settings_of
from kd_lightning.schedules import LearnedTemperature, LearnedTemperatures
from kd_lightning.tasks import Classification
from kd_lightning.transfer.fitnet import FitNet
from kd_lightning.utils.errors import UserError

SPEC = ImageSpec((1, 28, 28), 10, (0.5,), (0.5,))
NETS = {"first": StudentCNN, "second": MLP, "third": StudentCNN}


def module_of(students: int, **settings: Any) -> MutualModule:
    torch.manual_seed(0)
    objective = Objective(**{"alpha": 1.0, "temperature": 1.0, "hard_weight": 1.0, **settings})
    nets = {name: NETS[name] for name in list(NETS)[:students]}
    return MutualModule(nets, objective, task=Classification(SPEC))


@pytest.fixture
def batch() -> Batch:
    inputs = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return Batch(inputs, torch.arange(8), torch.arange(8))


@pytest.mark.parametrize("students", [2, 3])
def test_loss_is_hard_loss_plus_mean_over_peers(students: int, batch: Batch) -> None:
    module = module_of(students)
    found = module.terms(batch)
    logits: dict[str, Tensor] = {k: net(batch.inputs) for k, net in module.students.items()}
    expected = {}
    for name, own in logits.items():
        peers = [soft_targets(own, z, 1.0) for other, z in logits.items() if other != name]
        expected[name] = F.cross_entropy(own, batch.target) + sum(peers) / len(peers)
    assert list(found) == ["loss", *logits]
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss)
    torch.testing.assert_close(found["loss"], torch.stack(list(expected.values())).sum())


def test_no_gradient_crosses_from_one_student_to_another(batch: Batch) -> None:
    module = module_of(3)
    losses = module.terms(batch)
    for name in module.students:
        gradients = torch.autograd.grad(
            losses[name], list(module.students.parameters()), retain_graph=True, allow_unused=True
        )
        own = {id(p) for p in module.students[name].parameters()}
        for parameter, gradient in zip(module.students.parameters(), gradients, strict=True):
            assert (gradient is not None) == (id(parameter) in own)


def test_student_without_network_repeats_the_first() -> None:
    students = {"first": StudentCNN, "second": None, "third": MLP}
    module = MutualModule(students, Objective(), task=Classification(SPEC))
    assert [type(net) for net in module.students.values()] == [StudentCNN, StudentCNN, MLP]


def test_students_of_one_class_start_from_different_weights() -> None:
    first, _, third = (next(net.parameters()) for net in module_of(3).students.values())
    assert not torch.equal(first, third)


@pytest.mark.parametrize("settings", [{}, {"temperature": LearnedTemperatures(hidden=4)}])
def test_all_students_learn_and_are_measured(settings: dict[str, Any]) -> None:
    data = DigitsDataModule(batch_size=32, train_fraction=0.3)
    data.setup()
    module = module_of(3, **settings)
    inputs = torch.cat([x for *_, x in data.prepared("test").batches(torch.device("cpu"))])
    target = data.splits["test"].target
    with torch.no_grad():
        before = {name: F.cross_entropy(net(inputs), target) for name, net in named(module)}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=2, enable_checkpointing=False, **quiet)
    trainer.fit(module, data)
    (figures,) = trainer.test(module, data, verbose=False)
    for name, net in named(module):
        suffix = "" if name == "first" else f"_{name}"
        with torch.no_grad():
            logits = net(inputs)
        assert figures[f"test/accuracy{suffix}"] == pytest.approx(accuracy(logits, target))
        loss = F.cross_entropy(logits, target)
        assert figures[f"test/loss{suffix}"] == pytest.approx(loss.item(), rel=1e-5)
        assert loss < 0.6 * before[name]


def named(module: MutualModule) -> list[tuple[str, torch.nn.Module]]:
    return list(module.students.items())


def test_instances_may_be_passed_without_a_specification() -> None:
    data = DigitsDataModule(batch_size=32, train_fraction=0.1)
    module = MutualModule({"first": MLP((1, 28, 28), 10), "second": StudentCNN((1, 28, 28), 10)})
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet)
    trainer.fit(module, data)
    (figures,) = trainer.validate(module, data, verbose=False)
    assert {"val/accuracy", "val/accuracy_second"} <= figures.keys()


def test_what_cannot_be_trained_is_refused() -> None:
    net = MLP((1, 28, 28), 10)
    with pytest.raises(UserError, match=r"model\.students needs at least two students"):
        module_of(1)
    for name in ("loss", "keys"):
        with pytest.raises(UserError, match=rf"model\.students\.{name}: this name is reserved"):
            MutualModule({"first": net, name: net})
    with pytest.raises(UserError, match="model=mutual compares logits only"):
        module_of(2, transfer={"fitnet": FitNet()})
    with pytest.raises(UserError, match="None repeats a factory"):
        MutualModule({"first": net, "second": None})
    with pytest.raises(UserError, match=r"first needs a network: net@model\.students\.first="):
        MutualModule({"first": None, "second": net})


@pytest.mark.slow
def test_command_on_one_and_on_two_processes(command: Command, tmp_path: Path) -> None:
    done = command(
        *("-m", "data=digits", "method=mutual", "+net@model.students.third=mlp"),
        *("trainer.max_epochs=1", "trainer.devices=1,2", f"hydra.sweep.dir={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    for job, processes in (("0", 1), ("1", 2)):
        run_dir = tmp_path / job
        run, facts, metrics = load_run(run_dir), read_facts(run_dir), read_metrics(run_dir)
        assert isinstance(run.network, StudentCNN)
        assert (facts["role"], facts["method"], facts["teacher"]) == ("student", "mutual", "")
        assert facts["processes"] == processes
        assert not [name for name in metrics if "teacher" in name]
        assert metrics["test/accuracy"] == pytest.approx(accuracy(*recompute(run_dir, "test")))
        members = members_of(run_dir)
        for name, net in members.items():
            assert metrics[f"parameters_{name}"] == sum(p.numel() for p in net.parameters())
            data = DigitsDataModule()
            data.setup()
            inputs = torch.cat([x for *_, x in data.prepared("test").batches(torch.device("cpu"))])
            expected = accuracy(net(inputs), data.splits["test"].target)
            assert metrics[f"test/accuracy_{name}"] == pytest.approx(expected)
    # on two processes each step sees other samples
    first, second = (
        load_run(tmp_path / job).network.state_dict()["features.0.weight"] for job in "01"
    )
    assert not torch.equal(first, second)


def members_of(run_dir: Path) -> dict[str, torch.nn.Module]:
    """The students of a run after the first, at the best epoch."""
    state = read_checkpoint(run_dir / "checkpoints" / "best.ckpt")["state_dict"]
    members = {"second": StudentCNN((1, 28, 28), 10), "third": MLP((1, 28, 28), 10)}
    for name, net in members.items():
        start = f"students.{name}."
        net.load_state_dict(
            {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        )
    return members


@pytest.mark.parametrize(
    ("typed", "alpha", "temperature"),
    [
        (["method=mutual"], 1.0, 1.0),
        (["method=mutual", "method.temperature=3"], 1.0, 3.0),
        (["model=mutual", "method=ctkd"], 0.5, None),
    ],
)
def test_objective_is_that_of_the_chosen_method(
    typed: list[str], alpha: float, temperature: float | None
) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*typed, "data=digits", "run_dir=here"])
    module = make(cfg.model)(task=Classification(SPEC))
    assert isinstance(module, MutualModule)
    settings = module.settings()
    recorded = settings_of(plain(cfg), {}, module.role)
    assert settings["alpha"] == recorded["method.alpha"] == alpha
    if temperature is None:
        assert isinstance(module.objective.temperature, LearnedTemperature)
    else:
        assert settings["temperature"] == temperature
