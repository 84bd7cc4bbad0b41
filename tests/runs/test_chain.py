"""Tests of chains: generations, assistants, a kill in the middle, two processes."""

import csv
from pathlib import Path

import figures
import pytest
import torch
import yaml
from conftest import Command, read_facts, read_metrics, same_weights
from hydra import compose, initialize_config_dir
from killer import Killer

from kd_lightning import load_run
from kd_lightning.cli.paths import CONF
from kd_lightning.runs.build import build_source, make
from kd_lightning.runs.chain import Chain
from kd_lightning.teachers.sources import FromCheckpoint, FromStore, TeacherSource, Untrained

SMALL = ("data=digits", "data.train_fraction=0.3", "trainer.max_epochs=2", "net@student=mlp")
GENERATIONS = (*SMALL, "experiment=self_distillation", "chain.generations=3")


@pytest.fixture(scope="module")
def chain(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of three generations that was not interrupted."""
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


@pytest.mark.slow
def test_each_generation_learns_from_best_epoch_of_the_one_before(chain: Path) -> None:
    first, second, third = links(chain)
    facts = [read_facts(link) for link in links(chain)]
    assert [f["role"] for f in facts] == ["teacher", "student", "student"]
    assert [f["seed"] for f in facts] == [0, 1000, 2000]
    assert [f["teacher"] for f in facts] == ["", str(first), str(second)]
    for teacher, student in ((first, second), (second, third)):
        own, figures = read_metrics(teacher), read_facts(student)["teacher_figures"]
        assert read_metrics(student)["test/teacher_accuracy"] == own["test/accuracy"]
        assert figures == {name: own[name] for name in figures}
        assert {"test/accuracy", "val/loss", "parameters", "seconds"} <= figures.keys()
        assert not [name for name in figures if "class_" in name]


@pytest.mark.slow
def test_chain_records_its_links(chain: Path) -> None:
    facts = read_facts(chain)
    assert facts["links"] == ["generation 0", "generation 1", "generation 2"]
    assert (facts["role"], facts["seed"]) == ("student", 0)
    assert facts["teacher"] == str(links(chain)[1])
    assert facts["settings"]["chain.generations"] == 3
    assert facts["overrides"]["experiment"] == "self_distillation"
    assert load_run(chain).facts == facts
    assert same_weights(weights(chain), weights(links(chain)[-1]))


@pytest.mark.slow
def test_figures_of_a_chain_are_those_of_its_links_and_their_mean(chain: Path) -> None:
    for run_dir in (chain, *links(chain)):
        figures.check(run_dir)
    metrics, members = read_metrics(chain), [read_metrics(link) for link in links(chain)]
    assert metrics["test/accuracy"] == members[-1]["test/accuracy"]
    assert metrics["seconds"] == pytest.approx(sum(member["seconds"] for member in members))


@pytest.mark.slow
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
    assert Path(runs[0].facts["teacher"]).name.startswith("TeacherCNN-")  # from the store
    assert [run.facts["teacher"] for run in runs[1:]] == list(map(str, links(tmp_path)[:2]))
    assert read_facts(tmp_path)["links"] == ["first", "second", "student"]


@pytest.mark.slow
def test_killed_chain_resumes_in_its_link(
    chain: Path, command: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "killed"
    checkpoint = run_dir / "links" / "1" / "checkpoints" / "last.ckpt"
    kill = Killer(environment)
    kill(*GENERATIONS, f"hydra.run.dir={run_dir}", when=checkpoint.is_file)
    finished = run_dir / "links" / "0" / "metrics.json"
    left = finished.stat().st_mtime_ns
    assert not (run_dir / "metrics.json").exists()
    assert read_facts(run_dir)["links"] == ["generation 0", "generation 1", "generation 2"]
    done = command(f"resume={run_dir}")
    assert done.returncode == 0, done.stderr
    assert finished.stat().st_mtime_ns == left
    for ours, whole in zip(links(run_dir), links(chain), strict=True):
        assert same_weights(weights(ours), weights(whole))


@pytest.mark.slow
def test_each_link_trains_on_both_of_two_processes(command: Command, tmp_path: Path) -> None:
    done = command(*GENERATIONS, "trainer.devices=2", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    for link in links(tmp_path):
        with (link / "metrics.csv").open(newline="") as lines:
            steps = max(int(row["step"]) for row in csv.DictReader(lines))
        assert steps == 2 * 13  # of 25 batches of 16, each process has half
        config = yaml.safe_load((link / ".hydra" / "config.yaml").read_text())
        assert config["chain"] is None
        assert read_facts(link)["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    [
        *("chain.generations=1", "chain.generations=2.5", "~chain.generations", "model=mutual"),
        "method.temperature=-1",  # only later links use it
    ],
)
def test_invalid_chain_is_refused_before_training(
    command: Command, tmp_path: Path, typed: str
) -> None:
    done = command(
        *(*SMALL, "experiment=self_distillation", typed, f"hydra.run.dir={tmp_path}"),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "links").exists()  # before anything was trained


def test_other_assistant_has_settings_of_its_own() -> None:
    chosen = ["experiment=teacher_assistant", "net@chain.assistants.first=resnet20"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        first, second = compose("train", [*chosen, "run_dir=x"]).chain.assistants.values()
    net = make(first)((3, 32, 32), 100)
    assert sum(p.numel() for p in net.parameters()) == 278_324
    assert second.width == 8


@pytest.mark.slow
def test_chain_started_in_an_old_directory_forgets_its_links(
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
        assert (read_facts(link)["seed"], read_metrics(link)["epochs"]) == (1000 * i, 2)


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        (("teacher_from=checkpoint", "teacher_from.path=x.ckpt"), FromCheckpoint),
        (("teacher_ckpt=x.ckpt",), FromCheckpoint),
        (("method=untrained",), Untrained),
        ((), FromStore),
    ],
)
def test_later_links_learn_from_the_one_before_whatever_teaches_the_first(
    typed: tuple[str, ...], first: type[TeacherSource]
) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["experiment=teacher_assistant", *typed, "run_dir=runs/1"])
    chain = Chain(cfg, train=lambda job: None)
    source, *later = (build_source(chain.job(i)) for i in range(3))
    assert type(source) is first
    assert [link.paths for link in later if isinstance(link, FromCheckpoint)] == [
        ["runs/1/links/0"],
        ["runs/1/links/1"],
    ]
