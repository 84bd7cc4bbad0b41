"""Tests of runs whose processes a real Slurm starts, by srun and from a script of sbatch."""

import time
from pathlib import Path

import pytest
import torch
from conftest import Command, read_facts, read_metrics, same_weights
from page import command
from slurm_cluster import Slurm

pytestmark = pytest.mark.slow

SMALL = ("data=digits", "trainer.max_epochs=2", "student.width=4", "trainer.accelerator=cpu")
LOCAL = {"MASTER_ADDR": "127.0.0.1"}  # the names of the nodes do not resolve


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def pair(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with ``trainer.devices=2``, whose second process Lightning starts."""
    run_dir = tmp_path_factory.mktemp("pair") / "run"
    done = command(*SMALL, "trainer.devices=2", f"hydra.run.dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.parametrize("nodes", [1, 2])
def test_tasks_of_srun_are_one_run(slurm: Slurm, pair: Path, tmp_path: Path, nodes: int) -> None:
    # a directory named by the time, which differs between the processes
    where = f"hydra.run.dir={tmp_path}/${{now:%H-%M-%S-%f}}"
    own = (*SMALL, where, f"teacher_store={tmp_path}/teachers")
    line = command("srun --nodes=1", *own) if nodes == 1 else command("srun --nodes=2", *own)
    done = slurm(*line, **LOCAL)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (p for p in tmp_path.iterdir() if p.name != "teachers")
    assert same_weights(weights(run_dir), weights(pair))
    assert read_facts(run_dir)["processes"] == 2


def test_other_processes_than_the_run_needs_are_refused(slurm: Slurm, tmp_path: Path) -> None:
    train = ("python", "train.py", *SMALL, "trainer.devices=1", f"hydra.run.dir={tmp_path}/run")
    done = slurm.srun("--nodes=1", "-n2", *train)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    assert "Slurm has started 2 processes, but trainer.devices=1" in lines[0]
    assert not list(tmp_path.glob("**/metrics.json"))


def test_a_script_without_srun_trains_on_two_processes(
    slurm: Slurm, pair: Path, tmp_path: Path
) -> None:
    train = f"python train.py {' '.join(SMALL)} trainer.devices=2 hydra.run.dir={tmp_path}/run"
    job = slurm.sbatch(train, "--ntasks-per-node=2", "--nodes=1")
    facts = slurm.wait(job)
    assert facts["ExitCode"] == "0:0", slurm.output(job)
    assert same_weights(weights(tmp_path / "run"), weights(pair))
    assert read_facts(tmp_path / "run")["processes"] == 2


def test_a_requeued_job_goes_on(slurm: Slurm, pair: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    hold = "+callbacks.hold._target_=spy.HoldUntilRestart"
    train = f"srun python train.py {' '.join(SMALL)} trainer.devices=2 {hold}"
    script = f"export PYTHONPATH=$PWD/tests\n{train} hydra.run.dir={run_dir}"
    job = slurm.sbatch(script, "--ntasks=2", "--nodes=1", "--requeue")
    for _ in range(600):
        if (run_dir / "checkpoints" / "last.ckpt").is_file():
            break
        time.sleep(0.2)
    before = (run_dir / "checkpoints" / "last.ckpt").stat().st_ino
    slurm("scontrol", "requeue", job)
    facts = slurm.wait(job)
    assert (facts["ExitCode"], facts["Restarts"]) == ("0:0", "1"), slurm.output(job)
    assert (run_dir / "checkpoints" / "last.ckpt").stat().st_ino != before
    assert (run_dir / "train.log").read_text().count("epoch 1 of 2") == 1
    assert read_metrics(run_dir)["epochs"] == 2
    assert same_weights(weights(run_dir), weights(pair))
