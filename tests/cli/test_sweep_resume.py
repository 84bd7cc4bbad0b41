"""Tests of sweeps that are killed or fail and are resumed: they end as if uninterrupted."""

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, Command, read_facts, read_metrics, same_weights
from killer import Killer
from sklearn.datasets import load_digits
from spy import Resources

from kd_lightning.cli.command_line import arranged
from kd_lightning.runs.checkpoints import read_checkpoint
from kd_lightning.utils.errors import UserError

QUICK = ("data=digits", "data.train_fraction=0.2", "trainer.max_epochs=2")
TEACHER = ("teacher.width=2", "pretrain.trainer.max_epochs=1")
NINE = ("-m", *QUICK, *TEACHER, "method=ce,kd,fitnet", "seed=0,1,2")
ODD = "a sweep, {odd}=$1"  # a folder whose name has a meaning in Hydra's grammar
THERE = str(ROOT / "tests")


def files_in(folder: Path) -> dict[str, bytes]:
    """The files that a run wrote, without its log and lock."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("train.log", ".lock")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def rows_of(sweep: Path) -> list[dict[str, str]]:
    """The rows of a sweep's table, without what differs between machines."""
    with (sweep / "sweep.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if "time" not in k} for row in csv.DictReader(file)]


def assert_same_run(job: Path, other: Path) -> None:
    for name in ("best", "last"):
        one, two = (read_checkpoint(j / f"checkpoints/{name}.ckpt") for j in (job, other))
        assert same_weights(one["state_dict"], two["state_dict"])
    one, two = read_metrics(job), read_metrics(other)
    figures = [k for k in two if k.startswith(("val/", "test/"))]
    assert figures
    assert {k: one[k] for k in figures} == {k: two[k] for k in figures}
    typed = [read_facts(j)["overrides"] for j in (job, other)]
    one, two = ({k: v for k, v in t.items() if "resources" not in k} for t in typed)
    assert one == two


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def whole(command: Command, folder: Path) -> Path:
    """Nine jobs, uninterrupted."""
    sweep = folder / "whole"
    done = command(*NINE, f"hydra.sweep.dir={sweep}", *Resources.USE, PYTHONPATH=THERE)
    assert done.returncode == 0, done.stderr
    return sweep


@pytest.fixture(scope="module")
def killed(whole: Path, environment: dict[str, str], folder: Path) -> Path:
    """The same nine jobs, killed in the fifth."""
    sweep = folder / ODD
    started = sweep / "4" / "checkpoints" / "last.ckpt"
    Killer(environment)(*NINE, f"hydra.sweep.dir='{sweep}'", when=started.is_file)
    assert not (sweep / "4" / "metrics.json").is_file()
    return sweep


@pytest.mark.slow
def test_killed_sweep_ends_as_if_uninterrupted(command: Command, whole: Path, killed: Path) -> None:
    before = {job: files_in(killed / job) for job in "0123"}
    done = command(f"resume={killed}", "trust=true")
    assert done.returncode == 0, done.stderr
    assert {job: files_in(killed / job) for job in "0123"} == before
    for job in map(str, range(9)):
        assert_same_run(killed / job, whole / job)
        assert (killed / job / ".hydra" / "hydra.yaml").is_file()
    assert rows_of(killed) == rows_of(whole)
    assert list(rows_of(killed)[0])[:3] == ["job", "method", "seed"]
    last = [line for line in done.stdout.splitlines() if line.strip()][-11:-1]
    assert [line.split()[0] for line in last] == ["teacher", *map(str, range(9))]


@pytest.mark.slow
def test_jobs_leave_no_threads_and_files_open(whole: Path) -> None:
    notes = [json.loads((whole / str(job) / "resources.json").read_text()) for job in range(9)]
    for kind, count in notes[8].items():
        assert count <= notes[3][kind], notes


@pytest.mark.slow
def test_sweep_of_several_processes_is_resumed(command: Command, whole: Path, folder: Path) -> None:
    pytest.importorskip("joblib")
    sweep = folder / "joblib"
    shutil.copytree(whole, sweep)
    shutil.rmtree(sweep / "8")
    (sweep / "1" / "metrics.json").unlink()  # as if killed while it was evaluated
    before = {job: files_in(sweep / job) for job in "034567"}
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = command(f"resume={sweep}", "trust=true", *words, PYTHONPATH=THERE)
    assert done.returncode == 0, done.stderr
    assert {job: files_in(sweep / job) for job in before} == before
    for job in "18":
        assert_same_run(sweep / job, whole / job)
    assert rows_of(sweep) == rows_of(whole)


@pytest.mark.slow
def test_failed_job_is_mended_and_finished_job_is_kept(command: Command, tmp_path: Path) -> None:
    digits = load_digits()
    images, labels = digits.images.astype("uint8")[:300], digits.target[:300]
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "one.npz", **arrays)
    paths = f"data.path={tmp_path}/one.npz,{tmp_path}/two.npz"
    sweep = tmp_path / "sweep"
    words = ("method=ce", "model=teacher", "net@teacher=mlp", "trainer.max_epochs=1")
    failed = command("-m", "data=arrays", paths, *words, f"hydra.sweep.dir={sweep}")
    assert failed.returncode == 1
    assert (sweep / "1" / "error.txt").is_file()
    before = files_in(sweep / "0")
    shutil.copy(tmp_path / "one.npz", tmp_path / "two.npz")
    done = command(f"resume={sweep}", "trust=true", "teacher.dropout=0.25")
    assert done.returncode == 0, done.stderr
    assert files_in(sweep / "0") == before
    assert not (sweep / "1" / "error.txt").exists()
    config = yaml.safe_load((sweep / "1" / ".hydra" / "config.yaml").read_text())
    assert config["teacher"]["dropout"] == 0.25
    assert [(row["job"], row["dropout"]) for row in rows_of(sweep)] == [("0", ""), ("1", "0.25")]


@pytest.mark.slow
def test_search_goes_on_where_it_stopped(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    words = ("experiment=search", *QUICK, *TEACHER, "hydra.sweeper.n_trials=3")
    assert command(*words, f"hydra.sweep.dir={whole}").returncode == 0
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "2")
    (stopped / "optimization_results.yaml").unlink()
    # As if the second trial had been proposed after a failure that is mended now.
    overrides = stopped / "1" / ".hydra" / "overrides.yaml"
    old = overrides.read_text()
    overrides.write_text(old.replace("method.alpha=0.", "method.alpha=0.7"))
    before = {job: files_in(stopped / job) for job in "01"}
    done = command(f"resume={stopped}")
    assert done.returncode == 0, done.stderr
    assert files_in(stopped / "0") == before["0"]
    assert files_in(stopped / "1-1") == before["1"]
    assert f"kept in {stopped}/1-1" in done.stdout
    for job in "012":
        assert_same_run(stopped / job, whole / job)
    best = [(folder / "optimization_results.yaml").read_text() for folder in (whole, stopped)]
    assert best[0] == best[1]


@pytest.mark.slow
def test_interrupted_sweep_of_chains_says_how_to_resume(
    command: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    chain = ("experiment=self_distillation", "chain.generations=2", *QUICK, *TEACHER)
    words = ["-m", *chain, "seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    links = tmp_path / "0" / "links"
    begun = (links / "1" / "checkpoints" / "last.ckpt").is_file
    code, said = Killer(environment).send(signal.SIGTERM, *words, when=begun)
    assert code == 143
    assert f"resume with: python train.py resume={tmp_path}" in said
    before = files_in(links / "0")
    done = command(f"resume={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert files_in(links / "0") == before
    assert [row["job"] for row in rows_of(tmp_path)[-2:]] == ["0", "1"]
    assert all("val/ensemble_accuracy" in read_metrics(tmp_path / job) for job in "01")


RECORD = """
hydra:
  callbacks: {launch: {}}
  overrides:
    task: ["seed=0,1", "data=digits", "+trainer.gradient_clip_val=1"]
    hydra: [hydra/launcher=joblib, hydra.mode=MULTIRUN, hydra.sweep.dir=elsewhere]
  runtime: {config_sources: [{provider: command-line, path: mine}]}
"""


def test_command_of_a_sweep_is_rebuilt(tmp_path: Path) -> None:
    sweep = tmp_path / "it's, {odd}"
    sweep.mkdir()
    (sweep / "multirun.yaml").write_text(RECORD)
    words = arranged(["train.py", f"resume={sweep}", "+trainer.gradient_clip_val=2", "trust=true"])
    assert words[:6] == [
        *("train.py", "--config-dir", "mine", "seed=0,1", "data=digits", "hydra/launcher=joblib")
    ]
    quoted = str(sweep).replace("'", "\\'")
    assert words[6:10] == [
        *("+trainer.gradient_clip_val=2", f"hydra.sweep.dir='{quoted}'"),
        *("hydra.output_subdir=null", "hydra.mode=MULTIRUN"),
    ]
    assert words[10].endswith("='data trainer.gradient_clip_val'")


@pytest.mark.parametrize("typed", ["seed=2", "method=ce,kd"])
def test_what_is_swept_cannot_be_changed(tmp_path: Path, typed: str) -> None:
    (tmp_path / "multirun.yaml").write_text(RECORD)
    with pytest.raises(UserError, match=f"{typed} would change what the sweep varies"):
        arranged(["train.py", f"resume={tmp_path}", typed])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("", "does not record how the sweep was started"),
        ("hydra: {overrides: [", "does not record how the sweep was started"),
        ("[]", "does not record how the sweep was started"),
        ("hydra: {overrides: {task: []}}", "belongs to another program"),
        (f"{RECORD}  sweeper: {{sampler: {{seed: null}}}}", "this search has no seed"),
    ],
)
def test_records_that_cannot_be_resumed(tmp_path: Path, record: str, message: str) -> None:
    (tmp_path / "multirun.yaml").write_text(record)
    with pytest.raises(UserError, match=message) as caught:
        arranged(["train.py", f"resume={tmp_path}"])
    assert "\n" not in str(caught.value)
