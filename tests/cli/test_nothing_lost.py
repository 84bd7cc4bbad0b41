"""Tests that a run's files survive: resumed twice, refused, or shared by two processes."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Command, read_metrics
from killer import Killer

pytestmark = pytest.mark.slow

QUICK = ("data=digits", "trainer.max_epochs=2", "data.train_fraction=0.3", "method=ce")


def contents(run_dir: Path) -> dict[str, bytes]:
    """What a resumption could change, without logs."""
    files = [p for p in run_dir.rglob("*") if p.is_file() and "tensorboard" not in p.parts]
    return {str(p): p.read_bytes() for p in files if p.name not in ("train.log", "metrics.csv")}


@pytest.fixture(scope="module")
def run_dir(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lost") / "run"
    done = command(*QUICK, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_resuming_a_finished_run_changes_nothing(command: Command, run_dir: Path) -> None:
    before = contents(run_dir)
    done = command(f"resume={run_dir}")
    assert done.returncode == 0, done.stderr
    assert "is already finished" in done.stdout
    assert contents(run_dir) == before


def test_a_refused_resumption_changes_nothing_and_can_be_repeated(
    command: Command, run_dir: Path
) -> None:
    before = contents(run_dir)
    refused = command(f"resume={run_dir}", "optimizer=sgd", "trainer.max_epochs=3")
    assert refused.returncode == 1
    assert "trained with Adam, not with SGD" in refused.stderr
    assert contents(run_dir) == before
    seconds = json.loads((run_dir / "metrics.json").read_text())["seconds"]
    done = command(f"resume={run_dir}", "trainer.max_epochs=4")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["epochs"] == 4
    assert metrics["seconds"] > seconds  # of both legs together


def test_a_directory_in_use_is_refused_and_left_alone(
    command: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    words = [*QUICK, "trainer.max_epochs=500", f"hydra.run.dir={tmp_path / 'run'}"]
    first = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        started = tmp_path / "run" / "run.json"
        for _ in range(600):
            if started.is_file():
                break
            time.sleep(0.1)
        overrides = (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
        second = command(*QUICK, f"hydra.run.dir={tmp_path / 'run'}")
        assert second.returncode == 1
        assert "another process is using the run directory" in second.stderr
        assert (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text() == overrides
    finally:
        first.kill()
        first.wait()
    # The lock of a killed process is no obstacle.
    done = command(*QUICK, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr


def test_ctrl_c_says_how_to_resume(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*QUICK, "trainer.max_epochs=500", f"hydra.run.dir={folder}"]
    trained = (folder / "checkpoints" / "last.ckpt").is_file
    code, said = Killer(environment).send(signal.SIGINT, *words, when=trained)
    assert code == 130
    (line,) = [line for line in said.splitlines() if "resume" in line]
    assert re.fullmatch(rf"interrupted in epoch \d+; resume with: .* resume={folder}", line)


BUG = """
import torch

def buggy(z_s, z_t):
    # Not in the rehearsal, in which the batch has two samples.
    return z_s.mean() if len(z_s) == 2 else 1 // 0
"""


def test_a_bug_in_one_job_leaves_the_others_running(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "bugs.py").write_text(BUG)
    method = "defaults:\n  - kd\n  - _self_\nresponse:\n  _target_: bugs.buggy\n"
    (tmp_path / "mine" / "method" / "buggy.yaml").write_text(method)
    sweep = tmp_path / "sweep"
    done = command(
        *("-m", "--config-dir", str(tmp_path / "mine"), *QUICK[:3], "method=buggy,kd"),
        f"hydra.sweep.dir={sweep}",
    )
    assert done.returncode == 1
    assert "job 0 failed: ZeroDivisionError: " in done.stdout
    assert "Traceback" not in done.stderr
    assert "buggy" in (sweep / "0" / "traceback.txt").read_text()
    rows = (sweep / "sweep.csv").read_text().splitlines()
    assert [row.split(",")[:3] for row in rows[-2:]] == [
        ["0", "buggy", "failed"],
        ["1", "kd", rows[-1].split(",")[2]],
    ]
    assert (sweep / "1" / "metrics.json").is_file()


def test_paths_may_have_any_characters(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "it's a, {ü}=1"
    folder.mkdir()
    images, labels = np.zeros((60, 28, 28), np.uint8), np.arange(60) % 3
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(folder / "mine.npz", **arrays)
    words = ("data=arrays", f"data.path={folder}/mine.npz", "net@teacher=mlp")
    words = (*words, "trainer.max_epochs=1", f"teacher_store={folder}/teachers")
    done = command(*words, "model=teacher", "student.width=4", f"hydra.run.dir={folder}/teacher")
    assert done.returncode == 0, done.stderr
    assert "student.width has no effect on this run" in done.stdout
    student = (f"hydra.run.dir={folder}/student", f"teacher_ckpt={folder}/teacher")
    assert command(*words, *student).returncode == 0
    more = command(f"resume={folder}/student", "trainer.max_epochs=2")
    assert more.returncode == 0, more.stderr
    assert read_metrics(folder / "student")["epochs"] == 2
