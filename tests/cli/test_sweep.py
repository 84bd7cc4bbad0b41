"""Tests of sweeps: jobs are independent, share their teacher, and are listed in one table."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Command, Sweep, read_facts, read_metrics, same_weights
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from kd_lightning.cli.launch import Launch
from kd_lightning.runs.checkpoints import read_checkpoint

pytestmark = pytest.mark.slow

SAMPLES = 1293  # of the digits, once the test and the validation samples are taken out


def test_each_job_sees_all_its_data(device_sweep: Sweep) -> None:
    # batches of 16: 81 to one process, 41 to each of two
    steps = [read_checkpoint(job / "checkpoints/last.ckpt")["global_step"] for job in device_sweep]
    assert steps == [81, 81, 41, 41, 81, 81]
    for job, ranks in zip(device_sweep, (1, 1, 2, 2, 1, 1), strict=True):
        seen = [index for notes in device_sweep.spied(job) for index in notes["train"]]
        assert set(seen) == set(range(SAMPLES))
        assert len(seen) == SAMPLES + SAMPLES % ranks  # an odd one makes a full pair
        assert len(device_sweep.spied(job)) == ranks


def test_each_job_has_its_own_temperature_on_every_rank(device_sweep: Sweep) -> None:
    temperatures = [
        [notes["settings"]["temperature"] for notes in device_sweep.spied(job)]
        for job in device_sweep
    ]
    assert temperatures == [[2], [7], [2, 2], [7, 7], [2], [7]]


def test_job_of_two_processes_does_not_affect_the_next(device_sweep: Sweep) -> None:
    jobs = list(device_sweep)
    for before, after in ((jobs[0], jobs[4]), (jobs[1], jobs[5])):
        first, last = (read_checkpoint(j / "checkpoints/last.ckpt") for j in (before, after))
        assert same_weights(first["state_dict"], last["state_dict"])
        (one,), (other,) = device_sweep.spied(before), device_sweep.spied(after)
        assert one == other  # the same samples in the same order, on as many threads


def test_table_has_every_job_with_what_was_swept(device_sweep: Sweep) -> None:
    with (device_sweep.folder / "sweep.csv").open(newline="") as file:
        teacher, *rows = csv.DictReader(file)
    assert (teacher["job"], teacher["parameters"]) == ("teacher", "1,199,882")
    assert [row["job"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    swept = [(row["devices"], row["temperature"]) for row in rows]
    assert swept == [(d, t) for d in "121" for t in "27"]
    for row, job in zip(rows, device_sweep, strict=True):
        metrics = read_metrics(job)
        assert row["test accuracy"] == f"{100 * metrics['test/accuracy']:.2f} %"
        assert row["parameters"] == "27,210"
        assert row["time, s"] == f"{metrics['seconds']:.1f}"
    lines = (device_sweep.folder / "sweep.md").read_text().splitlines()
    assert len(lines) == 1 + 1 + 1 + len(rows)  # header, rule, teacher
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_kd_report_prints_the_same_table(device_sweep: Sweep, environment: dict[str, str]) -> None:
    report = [str(Path(sys.executable).parent / "kd-report"), str(device_sweep.folder)]
    again = subprocess.run(report, env=environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    assert again.stdout in device_sweep.stdout
    first_words = [line.split()[0] for line in again.stdout.splitlines() if line.strip()]
    assert first_words[-7:] == ["teacher", "0", "1", "2", "3", "4", "5"]


def test_concurrent_jobs_train_their_teacher_once(command: Command, tmp_path: Path) -> None:
    shared, folder = tmp_path / "store", tmp_path / "sweep"
    done = command(
        *("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "method.temperature=3,4"),
        *("data=digits", "trainer.max_epochs=1", "pretrain.trainer.max_epochs=1"),
        *("teacher.width=2", f"hydra.sweep.dir={folder}"),
        KD_TEACHERS=str(shared),
    )
    assert done.returncode == 0, done.stderr
    logs = [(folder / job / "train.log").read_text() for job in "01"]
    assert sum(log.count("Training the teacher in") for log in logs) == 1
    (teacher,) = shared.glob("TeacherCNN-*")
    for job, temperature in (("0", 3), ("1", 4)):
        assert read_facts(folder / job)["teacher"] == str(teacher)
        config = yaml.safe_load((folder / job / ".hydra" / "config.yaml").read_text())
        assert config["method"]["temperature"] == temperature
    assert len((folder / "sweep.md").read_text().splitlines()) == 2 + 1 + 2


def test_optuna_gets_the_monitored_figure(command: Command, tmp_path: Path) -> None:
    done = command(
        *("experiment=search", "hydra.sweeper.n_trials=2", "data=digits", "trainer.max_epochs=1"),
        f"hydra.sweep.dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    jobs = [tmp_path / "0", tmp_path / "1"]
    configs = [yaml.safe_load((job / ".hydra" / "config.yaml").read_text()) for job in jobs]
    tried = [(c["method"]["temperature"], c["method"]["alpha"]) for c in configs]
    assert tried[0] != tried[1]
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    figures = [read_metrics(job)["val/accuracy"] for job in jobs]
    assert best["best_value"] == max(figures)
    chosen = tried[figures.index(max(figures))]
    assert tuple(best["best_params"].values()) == pytest.approx(chosen)


def test_compare_gives_teacher_and_students_one_budget_and_seed(
    command: Command, tmp_path: Path
) -> None:
    done = command(
        *("experiment=compare", "data=digits", "trainer.max_epochs=1", "seed=3"),
        f"hydra.sweep.dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "sweep.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["job"], row["method"]) for row in rows] == [
        ("teacher", ""),
        ("0", "ce"),
        ("1", "kd"),
    ]
    (home,) = {Path(read_facts(tmp_path / job)["teacher"]) for job in "01"}
    assert [read_facts(tmp_path / job)["role"] for job in "01"] == ["baseline", "student"]
    for run in (home, tmp_path / "0", tmp_path / "1"):
        config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
        assert (config["seed"], config["trainer"]["max_epochs"]) == (3, 1)
        assert read_metrics(run)["epochs"] == 1


def test_configurations_of_earlier_jobs_are_not_kept() -> None:
    launch, (first, second) = Launch(), (JobReturn(), JobReturn())
    for job in (first, second):
        job.cfg, job.hydra_cfg, job.return_value = OmegaConf.create({}), OmegaConf.create({}), 0.9
        job.status = JobStatus.COMPLETED
        launch.on_job_end(job.cfg, job)
    assert (first.cfg, first.hydra_cfg, first.return_value) == (None, None, 0.9)
    assert second.cfg is not None  # callbacks after ours may read it
