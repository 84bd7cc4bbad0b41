"""Chains of distillations: generations, assistants, a kill in the middle, two processes."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Command
from hydra import compose, initialize_config_dir
from killer import Killer

from kd_lightning import load_run
from kd_lightning.cli.train import CONF
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.runs.build import make
from kd_lightning.runs.directory import read_metrics

pytestmark = pytest.mark.slow

SMALL = ("data=digits", "data.train_fraction=0.3", "trainer.max_epochs=2", "net@student=mlp")
GENERATIONS = (*SMALL, "experiment=self_distillation", "chain.generations=3")


@pytest.fixture(scope="module")
def chain(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three generations, without interruption."""
    run_dir = tmp_path_factory.mktemp("chain") / "whole"
    done = command(*GENERATIONS, f"hydra.run.dir={run_dir}")
    assert done.returncode == 0, done.stderr
    for name in ("generation 0", "generation 1", "generation 2", "all links together"):
        assert name in done.stdout
    return run_dir


def links(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "links").iterdir())


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_run(run_dir).network.state_dict()


def test_each_generation_learns_from_the_best_epoch_of_the_one_before(chain: Path) -> None:
    first, second, third = links(chain)
    assert "teacher" not in read_metrics(first)
    for teacher, student in ((first, second), (second, third)):
        metrics = read_metrics(student)
        assert metrics["teacher"] == str(teacher / "checkpoints" / "best.ckpt")
        assert metrics["test/teacher_accuracy"] == read_metrics(teacher)["test/accuracy"]
    assert len({read_metrics(link)["seed"] for link in links(chain)}) == 3


def test_the_chain_knows_its_links_and_what_they_are_worth_together(chain: Path) -> None:
    metrics = read_metrics(chain)
    data = DigitsDataModule()
    data.setup()
    test = data.splits["test"]
    members = [load_run(link) for link in links(chain)]
    shares = torch.stack([run.predict(test.inputs) for run in members]).mean(0)
    correct = (shares.argmax(1) == test.target).float().mean().item()
    assert metrics["test/ensemble_accuracy"] == pytest.approx(correct, abs=1e-6)
    for i, run in enumerate(members):
        assert metrics[f"test/accuracy_{i}"] == run.metrics["test/accuracy"]
    assert metrics["test/accuracy"] == members[-1].metrics["test/accuracy"]


def test_assistants_stand_between_teacher_and_student(command: Command, tmp_path: Path) -> None:
    done = command(
        *(*SMALL, "experiment=teacher_assistant", f"hydra.run.dir={tmp_path}"),
        *("chain.assistants.first.width=6", "chain.assistants.second.width=4"),
        "pretrain.trainer.max_epochs=1",
    )
    assert done.returncode == 0, done.stderr
    runs = [load_run(link) for link in links(tmp_path)]
    assert [type(run.network).__name__ for run in runs] == ["TeacherCNN", "TeacherCNN", "MLP"]
    sizes = [run.metrics["parameters"] for run in runs]
    assert [run.metrics["teacher_parameters"] for run in runs] == [1_199_882, *sizes[:2]]
    assert runs[0].metrics["teacher"] not in map(str, links(tmp_path))


def test_a_killed_chain_goes_on_in_its_link(
    chain: Path, command: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "killed"
    checkpoint = run_dir / "links" / "1" / "checkpoints" / "last.ckpt"
    kill = Killer(environment)
    kill(*GENERATIONS, f"hydra.run.dir={run_dir}", when=checkpoint.is_file)
    finished = run_dir / "links" / "0" / "metrics.json"
    left = finished.stat().st_mtime_ns
    assert not (run_dir / "metrics.json").exists()
    done = command(f"resume={run_dir}")
    assert done.returncode == 0, done.stderr
    assert finished.stat().st_mtime_ns == left
    for ours, whole in zip(links(run_dir), links(chain), strict=True):
        torch.testing.assert_close(weights(ours), weights(whole), rtol=0, atol=0)


def test_a_chain_on_two_processes_trains_each_link_on_both(
    command: Command, tmp_path: Path
) -> None:
    done = command(*GENERATIONS, "trainer.devices=2", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    for link in links(tmp_path):
        with (link / "metrics.csv").open(newline="") as lines:
            steps = max(int(row["step"]) for row in csv.DictReader(lines))
        assert steps == 2 * 13  # of 25 batches of 16, each process has half
        config = yaml.safe_load((link / ".hydra" / "config.yaml").read_text())
        assert config["chain"] is None


@pytest.mark.parametrize(
    "typed",
    [
        *("chain.generations=1", "chain.generations=2.5", "~chain.generations", "model=mutual"),
        "method.temperature=-1",  # only later links would use it
    ],
)
def test_a_chain_of_nothing_is_refused(command: Command, tmp_path: Path, typed: str) -> None:
    done = command(
        *(*SMALL, "experiment=self_distillation", typed, f"hydra.run.dir={tmp_path}"),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "links").exists()  # before anything was trained


def test_another_assistant_comes_with_settings_of_its_own() -> None:
    chosen = ["experiment=teacher_assistant", "net@chain.assistants.first=resnet20"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        first, second = compose("train", [*chosen, "run_dir=x"]).chain.assistants.values()
    net = make(first)((3, 32, 32), 100)
    assert sum(p.numel() for p in net.parameters()) == 278_324
    assert second.width == 8


def test_a_chain_begun_anew_in_an_old_directory_forgets_the_old_links(
    command: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    old = (*SMALL, "experiment=self_distillation", "chain.generations=2", "data.train_fraction=0.1")
    done = command(*old, "trainer.max_epochs=1", "seed=1", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    begun = tmp_path / "links" / "0" / "metrics.json"
    Killer(environment)(*old, f"hydra.run.dir={tmp_path}", when=lambda: not begun.is_file())
    done = command(f"resume={tmp_path}")
    assert done.returncode == 0, done.stderr
    for i, link in enumerate(links(tmp_path)):
        metrics = read_metrics(link)
        assert (metrics["seed"], metrics["epochs"]) == (1000 * i, 2)
