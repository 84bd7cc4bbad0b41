"""Tests of ``hydra/launcher=vectorized``: the runs are those of separate jobs."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Command, once, read_facts, read_metrics

from kd_lightning import load_run
from kd_lightning.runs.checkpoints import read_checkpoint
from kd_lightning.utils.run_directory import jobs_of

pytestmark = pytest.mark.slow

TEACHER = ("teacher.width=2", "pretrain.trainer.max_epochs=1")
QUICK = ("data=digits", "data.train_fraction=0.2", "student.width=2", *TEACHER)
TOGETHER = ("hydra/launcher=vectorized", "hydra.launcher.mode=always")
SWEPT = ("seed=range(4)", "method.temperature=1,3,8", "method.alpha=0.5,0.9")
ALL = ("-m", *QUICK, *SWEPT, "trainer.max_epochs=3", "optimizer.lr=0.03")
DOUBLE = "trainer.precision=64-true"
STUDENTS = 24


@pytest.fixture(scope="session")
def sweeps(command: Command, shared: Path) -> tuple[Path, Path]:
    """The same 24 jobs one by one, and together."""
    folders = shared / "one-by-one", shared / "together"

    def sweep(folder: Path, *launcher: str) -> str:
        done = command(*ALL, DOUBLE, *launcher, f"hydra.sweep.dir={folder}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    once(folders[0], lambda: sweep(folders[0]))
    once(folders[1], lambda: sweep(folders[1], *TOGETHER))
    return folders


def pairs(sweeps: tuple[Path, Path]) -> list[tuple[Path, Path]]:
    found = [*zip(*map(jobs_of, sweeps), strict=True)]
    assert len(found) == STUDENTS
    return found


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """The values in nested dictionaries and lists, by their places."""
    if isinstance(value, dict):
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {name: value}
    return {k: v for key, inner in items for k, v in leaves(inner, f"{name}/{key}").items()}


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two checkpoints' tensors, whose places must be the same."""
    assert one.keys() == other.keys()
    tensors = [k for k, v in one.items() if isinstance(v, torch.Tensor)]
    assert all(one[k].shape == other[k].shape for k in tensors)
    assert all(one[k].dtype == other[k].dtype for k in tensors)
    return max(float((one[k] - other[k]).abs().max()) for k in tensors if "kth" not in k)


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoints_are_those_of_separate_jobs(sweeps: tuple[Path, Path], name: str) -> None:
    for alone, together in pairs(sweeps):
        found = []
        for job in (alone, together):
            content = read_checkpoint(job / f"checkpoints/{name}.ckpt")
            content["callbacks"] = json.loads(
                json.dumps(content["callbacks"], default=float).replace(str(job), "")
            )
            content.pop("seconds")
            found.append(leaves(content))
        assert largest_difference(*found) < 1e-10
        plain = [{k: v for k, v in x.items() if not isinstance(v, torch.Tensor)} for x in found]
        assert plain[0] == plain[1]


def test_figures_and_facts_are_those_of_separate_jobs(sweeps: tuple[Path, Path]) -> None:
    for alone, together in pairs(sweeps):
        one, other = read_metrics(alone), read_metrics(together)
        assert list(one) == list(other)
        for name in one:
            if "latency" not in name and name != "seconds":
                exact = "accuracy" in name or "agreement" in name
                assert other[name] == pytest.approx(one[name], abs=0 if exact else 1e-6)
        facts, expected = read_facts(together), read_facts(alone)
        assert facts.pop("trained_together") == STUDENTS
        assert facts.pop("teacher_figures").keys() == expected.pop("teacher_figures").keys()
        assert {**facts, "code": ""} == {**expected, "code": ""}  # files may be edited meanwhile


def test_files_and_logged_values_are_those_of_separate_jobs(sweeps: tuple[Path, Path]) -> None:
    for alone, together in pairs(sweeps)[::7]:
        files = [
            {str(p.relative_to(job)) for p in job.rglob("*") if "tfevents" not in p.name}
            for job in (alone, together)
        ]
        assert files[0] == files[1]
        one, other = (
            list(csv.DictReader((job / "metrics.csv").read_text().splitlines()))
            for job in (alone, together)
        )
        assert len(one) == len(other)
        for row, expected in zip(other, one, strict=True):
            assert {k for k in row if row[k]} == {k for k in expected if expected[k]}
            values = {k: float(v) for k, v in row.items() if v}
            assert values == pytest.approx({k: float(expected[k]) for k in values}, abs=1e-5)
        logs = [(job / "train.log").read_text() for job in (alone, together)]
        lines = [re.findall(r"\] - (epoch \d of 3: .*)\(", text) for text in logs]
        assert len(lines[0]) == 3
        assert lines[0] == lines[1]


def test_each_student_keeps_its_own_best_epoch(sweeps: tuple[Path, Path]) -> None:
    best = [read_checkpoint(job / "checkpoints/best.ckpt")["epoch"] for job in jobs_of(sweeps[1])]
    assert len({*best}) > 1


def test_tables_are_those_of_separate_jobs(sweeps: tuple[Path, Path]) -> None:
    tables = []
    for sweep in sweeps:
        rows = csv.DictReader((sweep / "sweep.csv").read_text().splitlines())
        tables.append([{k: v for k, v in row.items() if "time" not in k} for row in rows])
    assert len(tables[0]) == STUDENTS + 1  # the teacher
    assert tables[0] == tables[1]


def test_reports_are_those_of_separate_jobs(
    sweeps: tuple[Path, Path], environment: dict[str, str]
) -> None:
    printed = []
    for sweep in sweeps:
        command = [sys.executable, "-m", "kd_lightning.cli.report", str(sweep)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment
        )
        # The last column is the time.
        printed.append(re.sub(r"(?m) +\d+\.\d+ *$", "", done.stdout.replace(str(sweep), "")))
    assert " ± " in printed[0]
    assert printed[0] == printed[1]


def test_a_run_loads_and_resumes_like_any_other(
    sweeps: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    run = load_run(sweeps[1] / "5")
    assert run.network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    job = tmp_path / "5"
    shutil.copytree(sweeps[1] / "5", job)
    done = command(f"resume={job}", "trainer.max_epochs=4")
    assert done.returncode == 0, done.stderr
    assert read_metrics(job)["epochs"] == 4
    state = read_checkpoint(job / "checkpoints/last.ckpt")
    before = read_checkpoint(sweeps[1] / "5" / "checkpoints/last.ckpt")
    assert state["global_step"] == before["global_step"] // 3 * 4


def test_a_resumed_sweep_trains_together_what_has_not_begun(
    sweeps: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    shutil.copytree(sweeps[1], sweep)
    (sweep / "3" / "metrics.json").unlink()  # it had begun
    for number in ("7", "20"):
        shutil.rmtree(sweep / number)
    done = command(f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert "22 jobs run one by one: begun before the sweep was resumed" in done.stdout
    counts = [read_facts(sweep / n).get("trained_together") for n in ("2", "3", "7", "20")]
    assert counts == [STUDENTS, STUDENTS, 2, 2]  # its training had ended, not its evaluation
    for number in ("3", "7", "20"):
        expected = read_metrics(sweeps[0] / number)["val/accuracy"]
        assert read_metrics(sweep / number)["val/accuracy"] == expected


def test_a_student_that_diverges_fails_alone(command: Command, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    words = (*QUICK, "trainer.max_epochs=1", "optimizer.lr=1e-3,1e30", "seed=0,1")
    done = command("-m", TOGETHER[0], *words, f"hydra.sweep.dir={sweep}")
    assert done.returncode == 1
    assert re.search(r"4 students in one step.* ms", done.stdout)  # it has timed both ways
    assert "2 of 4 jobs failed" in done.stderr
    errors = [(sweep / n / "error.txt").is_file() for n in ("0", "1", "2", "3")]
    assert errors == [False, False, True, True]
    text = (sweep / "2" / "error.txt").read_text()
    assert re.match(
        r"the loss is not finite at step \d+: loss=.*no checkpoint has been saved", text
    )
    assert not (sweep / "2" / "metrics.json").exists()
    assert read_metrics(sweep / "0")["epochs"] == 1


@pytest.mark.parametrize("methods", ["ce,kd", "kd,ce"])
def test_a_baseline_is_no_member_of_a_group_of_distilled_students(
    command: Command, tmp_path: Path, methods: str
) -> None:
    words = (f"method={methods}", "method.alpha=0.5", "seed=0,1", "trainer.max_epochs=1")
    done = command("-m", *QUICK, *TOGETHER, *words, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    for job in jobs_of(tmp_path):
        facts = read_facts(job)
        assert facts["trained_together"] == 2
        with (job / "metrics.csv").open(newline="") as lines:
            columns = csv.DictReader(lines).fieldnames or ()
        assert ("train/response" in columns) == (facts["role"] == "student")
