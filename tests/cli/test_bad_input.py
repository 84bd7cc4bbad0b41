"""Tests of bad input: one line says what is wrong and how to mend it; other jobs go on.

Mistakes in a configuration are the jobs of one sweep, an experiment each. Mistakes that end the
command itself have commands of their own.
"""

import csv
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command, RunsCode, read_facts, read_metrics, same_weights

from kd_lightning import load_run
from kd_lightning.runs.checkpoints import read_checkpoint
from kd_lightning.utils.run_directory import find_checkpoint

pytestmark = pytest.mark.slow

Outcome = CompletedProcess[str]

NO_NETWORK = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}

# An experiment: the options it chooses beside data=digits, the values it sets, and the start of
# its error. DIR stands for the folder of the test, JOB for the number of the job.
CASES: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "no_data": (
        {"data": "mnist"},
        {"data": {"root": "DIR/empty"}},
        "MNIST is not in DIR/empty and could not be downloaded: use data=digits (needs no "
        "network), or point data.root= (or KD_DATA_DIR) to a copy",
    ),
    "no_path": ({"data": "arrays"}, {}, "data.path is required: set data.path="),
    "too_cold": (
        {},
        {"method": {"temperature": 0}},
        "method.temperature must be a positive number in 1e-15…1e15, got 0",
    ),
    "too_sure": (
        {},
        {"method": {"alpha": 1.5}},
        "method.alpha must lie in 0…1 (weight of the response loss), got 1.5",
    ),
    "teacher_missing": (
        {},
        {"teacher_ckpt": "DIR/none.ckpt"},
        "there is no checkpoint file DIR/none.ckpt",
    ),
    "teacher_truncated": (
        {},
        {"teacher_ckpt": "DIR/truncated.ckpt"},
        "the checkpoint DIR/truncated.ckpt is damaged or cut short",
    ),
    "teacher_that_runs_code": (
        {},
        {"teacher_ckpt": "DIR/code.ckpt"},
        "DIR/code.ckpt is not a checkpoint of weights: it is damaged, or holds objects that "
        "would have to run code to be loaded, which is refused",
    ),
    "teacher_of_another_kind": (
        {"net@teacher": "mlp"},
        {"teacher_ckpt": "DIR/teacher.ckpt"},
        "DIR/teacher.ckpt holds another network than MLP as configured for this data: it lacks "
        "layers.1.weight; it has features.0.weight; see net@teacher= and data=",
    ),
    "teacher_of_more_classes": (
        {"data": "arrays"},
        {"data": {"path": "DIR/three.npz"}, "teacher_ckpt": "DIR/teacher.ckpt"},
        "DIR/teacher.ckpt holds another network than TeacherCNN as configured for this data: "
        "classifier.4.weight is [10, 128] there and [3, 128] here; classifier.4.bias is [10] "
        "there and [3] here; see net@teacher= and data=",
    ),
    "too_many_devices": (
        {},
        {"trainer": {"devices": 64}},
        "trainer.devices=64 asks for more processes than the",
    ),
    "no_teacher": (
        {"teacher_from": "none"},
        {},
        "this objective needs a teacher: see teacher=, teacher_from=",
    ),
    "teacher_for_a_teacher": (
        {"model": "teacher"},
        {"teacher_ckpt": "DIR/teacher.ckpt"},
        "teacher_ckpt is given, but nothing here learns from a teacher: see model=",
    ),
    "no_path_of_a_teacher": (
        {"teacher_from": "checkpoint"},
        {},
        "teacher_from.path is required: set teacher_from.path=",
    ),
    "no_store": (
        {},
        {"teacher_store": "DIR/teacher.ckpt/store"},
        "teacher_store=DIR/teacher.ckpt/store cannot be used: ",
    ),
    "diverging": (  # after one good epoch, by steps that are far too large
        {"lr_scheduler": "multistep"},
        {"lr_scheduler": {"milestones": [1], "gamma": 1e30}, "trainer": {"max_epochs": 3}},
        "the loss is not finite at step 83: loss=nan, hard=nan, response=nan; try a lower "
        "optimizer.lr; the last good checkpoint is DIR/sweep/JOB/checkpoints/best.ckpt",
    ),
    **{
        f"without_{package}": ({"logger": package}, {}, f"Requirement '{package}")
        for package in ("wandb", "mlflow")
        if not find_spec(package)
    },
}
GOOD = str(len(CASES))  # the last job, with nothing wrong


@pytest.fixture(scope="module")
def folder(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the cases need, and an experiment for each case."""
    folder = tmp_path_factory.mktemp("bad")
    teacher = find_checkpoint(read_facts(digits_run)["teacher"])
    shutil.copy(teacher, folder / "teacher.ckpt")
    (folder / "truncated.ckpt").write_bytes(teacher.read_bytes()[:100_000])
    torch.save({"state_dict": {}, "more": RunsCode(folder / "trace")}, folder / "code.ckpt")
    (folder / "empty").mkdir()
    images, labels = np.zeros((60, 28, 28), np.uint8), np.arange(60) % 3
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(folder / "three.npz", **arrays)
    experiments = folder / "conf" / "experiment"
    experiments.mkdir(parents=True)
    for name, (options, values, _) in {**CASES, "good": ({}, {}, "")}.items():
        chosen = {"data": "digits", **options}
        values = {"trainer": {"max_epochs": 1}, **values}
        values["defaults"] = [{f"override /{group}": option} for group, option in chosen.items()]
        text = yaml.safe_dump(values).replace("DIR/", f"{folder}/")
        (experiments / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return folder


@pytest.fixture(scope="module")
def sweep(folder: Path, command: Command) -> Outcome:
    """The sweep over all cases."""
    return command(
        *("-m", "--config-dir", str(folder / "conf"), f"experiment={','.join([*CASES, 'good'])}"),
        f"hydra.sweep.dir={folder / 'sweep'}",
        **NO_NETWORK,
    )


@pytest.mark.parametrize("name", CASES)
def test_failed_job_prints_one_line(name: str, folder: Path, sweep: Outcome) -> None:
    number = list(CASES).index(name)
    expected = CASES[name][-1].replace("DIR/", f"{folder}/").replace("JOB", str(number))
    assert sweep.stderr.splitlines()[number].startswith(f"error: {expected}")
    assert not (folder / "sweep" / str(number) / "metrics.json").exists()


def test_failed_jobs_print_nothing_else(sweep: Outcome) -> None:
    lines = sweep.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert lines[len(CASES) :] == [
        f"error: {len(CASES)} of {len(CASES) + 1} jobs failed; see above"
    ]
    assert "Traceback" not in sweep.stdout
    assert sweep.returncode == 1


def test_other_job_runs_and_table_marks_failed_ones(folder: Path, sweep: Outcome) -> None:
    with (folder / "sweep" / "sweep.csv").open(newline="") as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    assert [rows[str(n)]["val accuracy"] for n in range(len(CASES))] == ["failed"] * len(CASES)
    accuracy = read_metrics(folder / "sweep" / GOOD)["test/accuracy"]
    assert rows[GOOD]["test accuracy"] == f"{100 * accuracy:.2f} %"
    assert rows[GOOD]["experiment"] == "good"
    failed = [line.split() for line in sweep.stdout.splitlines() if "failed" in line]
    numbers = [str(n) for n in range(len(CASES))]
    assert [words[0] for words in failed if words[0] != "job"] == numbers  # rows of the table
    assert [words[1] for words in failed if words[0] == "job"] == numbers  # with the reason


def test_checkpoint_cannot_run_code(folder: Path, sweep: Outcome) -> None:
    assert sweep.returncode == 1
    assert not (folder / "trace").exists()


def test_diverged_run_keeps_its_best_epoch(folder: Path, sweep: Outcome) -> None:
    run_dir = folder / "sweep" / str(list(CASES).index("diverging"))
    assert sweep.returncode == 1
    assert read_checkpoint(find_checkpoint(run_dir))["global_step"] == 81
    weights = load_run(run_dir).network.state_dict()
    expected = load_run(folder / "sweep" / GOOD).network.state_dict()
    assert same_weights(weights, expected)
    assert read_facts(run_dir)["role"] == "student"


ALONE = {
    "unknown_option": ("data=digits", "method.temprature=3"),
    "no_directory": ("data=digits", "hydra.run.dir=DIR/teacher.ckpt/run"),
    "no_run_to_resume": ("resume=DIR/nowhere",),
    "two_processes": ("data=digits", "trainer.devices=2", "optimizer.lr=1e30"),
    "full_error": ("data=digits", "method.temperature=-1"),
}


@pytest.fixture(scope="module")
def alone(folder: Path, command: Command, digits_run: Path) -> dict[str, Outcome]:
    """The outcome of each command; two run at a time."""

    def start(name: str) -> Outcome:
        arguments = [a.replace("DIR/", f"{folder}/") for a in ALONE[name]]
        if not any("run" in a for a in arguments):
            arguments.append(f"hydra.run.dir={folder / name}")
        full = {"HYDRA_FULL_ERROR": "1"} if name == "full_error" else {}
        return command(*arguments, **full)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ALONE, pool.map(start, ALONE), strict=True))


def test_unknown_option_names_the_nearest_one(alone: dict[str, Outcome]) -> None:
    outcome = alone["unknown_option"]
    assert outcome.returncode == 1
    expected = "there is no setting method.temprature; did you mean method.temperature?"
    assert outcome.stderr == f"error: {expected}\n"
    assert "Traceback" not in outcome.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_directory",
            "the run directory cannot be written ([Errno 20] Not a directory: "
            "'DIR/teacher.ckpt/run'); see hydra.run.dir=",
        ),
        ("no_run_to_resume", "resume=DIR/nowhere: no run was started in DIR/nowhere"),
        (
            "two_processes",
            "the loss is not finite at step 2: loss=nan, hard=nan, response=nan; try a lower "
            "optimizer.lr; no checkpoint has been saved yet",
        ),
    ],
)
def test_failed_command_prints_one_line(
    name: str, message: str, folder: Path, alone: dict[str, Outcome]
) -> None:
    assert alone[name].stderr == f"error: {message}\n".replace("DIR/", f"{folder}/")
    assert "Traceback" not in alone[name].stdout
    assert alone[name].returncode == 1


def test_traceback_is_printed_on_request(alone: dict[str, Outcome]) -> None:
    outcome = alone["full_error"]
    assert outcome.returncode == 1
    assert "Traceback (most recent call last)" in outcome.stderr
    assert "method.temperature must be a positive number in 1e-15…1e15, got -1" in outcome.stderr
