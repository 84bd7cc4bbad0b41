"""Students that teach one another: what each minimises, and what a finished run gives back."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import Command
from hydra import compose, initialize_config_dir
from torch import Tensor

from kd_lightning import load_run
from kd_lightning.cli.train import CONF
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.data.types import Batch, DataSpec
from kd_lightning.losses import soft_targets
from kd_lightning.modules import MutualModule
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.nets.mlp import MLP
from kd_lightning.objective import Objective
from kd_lightning.runs.build import make
from kd_lightning.runs.directory import choices
from kd_lightning.schedules import LearnedTemperature, LearnedTemperatures
from kd_lightning.transfer.fitnet import FitNet
from kd_lightning.utils.errors import UserError

SPEC = DataSpec((1, 28, 28), 10, (0.5,), (0.5,))
NETS = {"first": StudentCNN, "second": MLP, "third": StudentCNN}


def module_of(students: int, **settings: Any) -> MutualModule:
    torch.manual_seed(0)
    objective = Objective(**{"alpha": 1.0, "temperature": 1.0, "hard_weight": 1.0, **settings})
    return MutualModule({k: NETS[k] for k in list(NETS)[:students]}, objective, SPEC)


@pytest.fixture
def batch() -> Batch:
    inputs = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return Batch(inputs, torch.arange(8), torch.arange(8))


@pytest.mark.parametrize("students", [2, 3])
def test_each_learns_from_the_labels_and_the_mean_of_its_peers(students: int, batch: Batch) -> None:
    module = module_of(students)
    found = module.terms(batch)
    answers: dict[str, Tensor] = {k: net(batch.inputs) for k, net in module.students.items()}
    expected = {}
    for name, own in answers.items():
        peers = [soft_targets(own, z, 1.0) for other, z in answers.items() if other != name]
        expected[name] = F.cross_entropy(own, batch.target) + sum(peers) / len(peers)
    assert list(found) == ["loss", *answers]
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


def test_a_student_left_open_is_another_like_the_first() -> None:
    module = MutualModule({"first": StudentCNN, "second": None, "third": MLP}, Objective(), SPEC)
    assert [type(net) for net in module.students.values()] == [StudentCNN, StudentCNN, MLP]


def test_students_of_one_kind_start_apart() -> None:
    first, _, third = (next(net.parameters()) for net in module_of(3).students.values())
    assert not torch.equal(first, third)


@pytest.mark.parametrize("settings", [{}, {"temperature": LearnedTemperatures(hidden=4)}])
def test_all_of_them_learn(settings: dict[str, Any]) -> None:
    data = DigitsDataModule(batch_size=32)
    data.setup()
    module = module_of(3, **settings)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=2, enable_checkpointing=False, **quiet)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    figures = trainer.callback_metrics
    for name, net in module.students.items():
        logged = figures["test/accuracy" if name == "first" else f"test/accuracy_{name}"]
        inputs = torch.cat([x for *_, x in data.prepared("test").batches(torch.device("cpu"))])
        right = net(inputs).argmax(1) == data.splits["test"].target
        assert logged.item() == pytest.approx(right.float().mean().item())
        assert logged > 0.7


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="two students or more"):
        module_of(1)
    for name in ("loss", "keys"):
        with pytest.raises(UserError, match=f"model.students.{name}: a student cannot be called"):
            MutualModule({"first": MLP, name: MLP}, Objective(), SPEC)
    with pytest.raises(UserError, match="compares answers only"):
        module_of(2, transfer={"fitnet": FitNet()})


@pytest.mark.slow
def test_by_the_command_on_one_process_and_on_two(command: Command, tmp_path: Path) -> None:
    done = command(
        *("-m", "data=digits", "method=mutual", "+net@model.students.third=mlp"),
        *("trainer.max_epochs=1", "trainer.devices=1,2", f"hydra.sweep.dir={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    data = DigitsDataModule()
    data.setup()
    for job in "01":
        run = load_run(tmp_path / job)
        assert isinstance(run.network, StudentCNN)
        assert "teacher" not in run.metrics
        right = run.predict(data.splits["test"].inputs).argmax(1) == data.splits["test"].target
        assert run.metrics["test/accuracy"] == pytest.approx(right.float().mean().item())
        for name, parameters in (("second", 27_210), ("third", 101_770)):
            assert run.metrics[f"parameters_{name}"] == parameters
            assert run.metrics[f"test/accuracy_{name}"] > 0.6
    # on two processes each step sees other samples
    first, second = (
        load_run(tmp_path / job).network.state_dict()["features.0.weight"] for job in "01"
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("typed", "alpha", "temperature"),
    [
        (["method=mutual"], 1.0, 1.0),
        (["method=mutual", "method.temperature=3"], 1.0, 3.0),
        (["model=mutual", "method=ctkd"], 0.5, None),
    ],
)
def test_its_objective_is_that_of_the_method(
    typed: list[str], alpha: float, temperature: float | None
) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*typed, "data=digits", "run_dir=here"])
    module = make(cfg.model)(spec=SPEC)
    assert isinstance(module, MutualModule)
    settings = module.settings()
    assert settings["alpha"] == choices(cfg)["method.alpha"] == alpha
    if temperature is None:
        assert isinstance(module.objective.temperature, LearnedTemperature)
    else:
        assert settings["temperature"] == temperature
