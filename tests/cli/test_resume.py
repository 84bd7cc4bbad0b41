"""Tests of runs that are killed with ``kill -9`` and resumed: they end as if uninterrupted."""

import csv
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, Command, read_facts, read_metrics, same_weights
from killer import Killer

from kd_lightning.runs.checkpoints import read_checkpoint

pytestmark = pytest.mark.slow

# a small teacher with dropout, so that resumption has random numbers to get right
JOB = ("data=digits", "trainer.max_epochs=4", "net@teacher=mlp", "teacher.dropout=0.5")

Files = dict[str, bytes]


def files_in(folder: Path) -> Files:
    """Every file in a folder with its content."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@dataclass
class Lives:
    """A run that was killed and resumed.

    Attributes:
        run_dir: its directory.
        left: the files after each kill.
        outcomes: of the commands that resumed it and were not killed.
    """

    run_dir: Path
    left: list[Files]
    outcomes: list[subprocess.CompletedProcess[str]]


def live_student(run_dir: Path, command: Command, kill: Killer) -> Lives:
    """A student killed after its first epoch; resumed as another network, then as itself."""
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    kill(*JOB, f"hydra.run.dir={run_dir}", when=checkpoint.is_file)
    left = files_in(run_dir)
    refused = command(f"resume={run_dir}", "student.width=8")
    after = files_in(run_dir)
    return Lives(run_dir, [left, after], [refused, command(f"resume={checkpoint}")])


def live_teacher(run_dir: Path, command: Command, kill: Killer) -> Lives:
    """A teacher killed in its first epoch, before any checkpoint, resumed, killed in its third."""
    held, left = run_dir / "held", []
    hold = ("+callbacks.hold._target_=spy.Hold", f"+callbacks.hold.folder={run_dir}")
    first = ("model=teacher", *hold, "+callbacks.hold.epoch=0", f"hydra.run.dir={run_dir}")
    for arguments in (
        (*JOB, *first),
        (f"resume={run_dir}", "callbacks.hold.epoch=2", "trust=true"),
    ):
        kill(*arguments, when=held.is_file)
        held.unlink()
        left.append(files_in(run_dir))
    there = str(ROOT / "tests")
    words = (f"resume={run_dir}", "callbacks.hold.epoch=-1", "trust=true")
    last = command(*words, PYTHONPATH=there)
    return Lives(run_dir, left, [last])


@pytest.fixture(scope="module")
def lives(
    command: Command, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Lives]:
    """A student and a teacher that were killed, and both uninterrupted; three at a time."""
    folder = tmp_path_factory.mktemp("resume")
    kill = Killer(environment)
    with ThreadPoolExecutor(2) as pool:
        jobs = ("-m", *JOB, "model=student,teacher", f"hydra.sweep.dir={folder / 'whole'}")
        student = pool.submit(live_student, folder / "student", command, kill)
        teacher = pool.submit(live_teacher, folder / "teacher", command, kill)
        whole = pool.submit(command, *jobs)
    assert whole.result().returncode == 0, whole.result().stderr
    return {"student": student.result(), "teacher": teacher.result()}


NAMES = ("student", "teacher")


@pytest.fixture(params=NAMES)
def resumed(request: pytest.FixtureRequest, lives: dict[str, Lives]) -> Lives:
    return lives[request.param]


@pytest.fixture
def whole(resumed: Lives) -> Path:
    """The same run, uninterrupted."""
    return resumed.run_dir.parent / "whole" / str(NAMES.index(resumed.run_dir.name))


def test_run_was_killed_during_training_and_finished_later(resumed: Lives) -> None:
    assert "checkpoints/last.ckpt" in resumed.left[-1]
    assert "metrics.json" not in resumed.left[-1]
    assert resumed.outcomes[-1].returncode == 0, resumed.outcomes[-1].stderr
    assert read_metrics(resumed.run_dir)["epochs"] == 4


def test_resumed_run_has_weights_of_uninterrupted_run(resumed: Lives, whole: Path) -> None:
    found, expected = (
        read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (resumed.run_dir, whole)
    )
    assert found["global_step"] == expected["global_step"] == 4 * 81
    assert same_weights(found["state_dict"], expected["state_dict"])
    moments, moments_expected = (c["optimizer_states"][0]["state"] for c in (found, expected))
    for number, state in moments_expected.items():
        assert all(torch.equal(moments[number][k], v) for k, v in state.items())


def test_resumed_run_has_figures_of_uninterrupted_run(resumed: Lives, whole: Path) -> None:
    found, expected = read_metrics(resumed.run_dir), read_metrics(whole)
    figures = [k for k in expected if k.startswith(("val/", "test/"))]
    assert figures
    assert {k: found[k] for k in figures} == {k: expected[k] for k in figures}


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of ``metrics.csv`` without empty cells."""
    return [{k: v for k, v in row.items() if v} for row in csv.DictReader(text.splitlines())]


def test_metrics_csv_keeps_earlier_epochs(resumed: Lives, whole: Path) -> None:
    before = rows_of(resumed.left[-1]["metrics.csv"].decode())
    after = rows_of((resumed.run_dir / "metrics.csv").read_text())
    assert before
    assert after[: len(before)] == before
    expected = rows_of((whole / "metrics.csv").read_text())
    found, wanted = (
        [(row["epoch"], row["val/accuracy"]) for row in rows if "val/accuracy" in row]
        for rows in (after, expected)
    )
    assert found == wanted


def test_facts_are_written_before_training_starts(lives: dict[str, Lives]) -> None:
    run = lives["teacher"]
    first = run.left[0]  # killed in the first epoch
    assert "metrics.json" not in first
    facts = json.loads(first["run.json"])
    assert (facts["role"], facts["method"], facts["seed"]) == ("teacher", "", 0)
    assert facts["settings"]["teacher.dropout"] == 0.5
    assert facts["overrides"]["model"] == "teacher"


def test_resumed_run_has_facts_of_uninterrupted_run(resumed: Lives, whole: Path) -> None:
    found, expected = read_facts(resumed.run_dir), read_facts(whole)
    typed = ("overrides", "settings", "code")  # the code may have changed meanwhile
    assert {k: v for k, v in found.items() if k not in typed} == {
        k: v for k, v in expected.items() if k not in typed
    }
    differing = {k for k, v in found["settings"].items() if expected["settings"].get(k) != v}
    assert all(name.startswith("callbacks.hold") for name in differing)


def test_record_of_the_start_is_kept(resumed: Lives) -> None:
    records = resumed.run_dir / ".hydra"
    assert (records / "hydra.yaml").read_bytes() == resumed.left[0][".hydra/hydra.yaml"]
    typed = yaml.safe_load((records / "overrides.yaml").read_text())
    assert set(JOB) <= set(typed)
    config = yaml.safe_load((records / "config.yaml").read_text())
    assert config["run_dir"] == str(resumed.run_dir)
    assert config["trainer"]["max_epochs"] == 4


def test_run_killed_before_any_checkpoint_starts_at_the_beginning(lives: dict[str, Lives]) -> None:
    run = lives["teacher"]
    assert not [name for name in run.left[0] if name.endswith(".ckpt")]
    restarted = "no epoch had ended in"
    assert run.left[1]["train.log"].decode().count(restarted) == 1
    assert (run.run_dir / "train.log").read_text().count(restarted) == 1


def test_other_network_is_refused_and_run_stays_unchanged(lives: dict[str, Lives]) -> None:
    run = lives["student"]
    refused, before, after = run.outcomes[0], *run.left
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        f"error: resume={run.run_dir}/checkpoints/last.ckpt belongs to another network: "
        "student.features.0.weight is [16, 1, 3, 3] there and [8, 1, 3, 3] here"
    )
    assert refused.stderr.count("\n") == 1
    assert "Traceback" not in refused.stdout
    logs = [files.pop("train.log") for files in (before, after)]
    assert logs[1].startswith(logs[0])  # the only file to which anything is added
    assert after == before
