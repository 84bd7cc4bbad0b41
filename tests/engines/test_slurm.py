"""Tests on a real Slurm of two nodes, and of its rehearsal on one machine."""

from pathlib import Path

import deadly
import pytest
from conftest import Command, accuracy, read_metrics, recompute
from slurm_cluster import Slurm

pytestmark = pytest.mark.slow

QUICK = ("data=digits", "trainer.max_epochs=1")


def test_cluster_runs_commands_and_scripts(slurm: Slurm) -> None:
    done = slurm.srun("-N2", "-n2", "bash", "-c", "echo $SLURMD_NODENAME $SLURM_PROCID")
    assert sorted(done.stdout.split("\n")) == ["", "n1 0", "n2 1"], done.stderr
    job = slurm.sbatch("exit 3")
    assert slurm.wait(job)["ExitCode"] == "3:0", slurm.output(job)


def test_jobs_of_a_sweep_are_jobs_of_slurm(slurm: Slurm, tmp_path: Path) -> None:
    # One process and two, with a user's method.
    mine, sweep = deadly.write(tmp_path / "mine"), tmp_path / "sweep"
    (mine / "trigger").unlink()
    done = slurm(
        *("python", "train.py", "-m", "hydra/launcher=submitit_slurm", "--config-dir", mine),
        *("hydra.launcher.cpus_per_task=2", "trainer.devices=1,2", "method=deadly", *QUICK),
        f"hydra.sweep.dir={sweep}",
    )
    assert done.returncode == 0, done.stderr
    rows = (sweep / "sweep.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[-2:]] == [["0", "1"], ["1", "2"]]
    for number in (0, 1):
        run = sweep / str(number)
        expected = accuracy(*recompute(run, "test"))
        assert read_metrics(run)["test/accuracy"] == pytest.approx(expected, abs=1e-7)
    assert {p.name for p in mine.glob("called-*")} == {"called-0", "called-1"}
    logs = sorted(p.name for p in (sweep / ".submitit").glob("*/*_log.out"))
    assert len(logs) == 2


def test_submitit_runs_jobs_on_this_machine(command: Command, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    words = ("-m", "hydra/launcher=submitit_local", "method=kd,ce", *QUICK)
    done = command(*words, f"hydra.sweep.dir={sweep}")
    assert done.returncode == 0, done.stderr
    assert "validated against ConfigStore" not in done.stderr
    assert [read_metrics(sweep / str(n))["epochs"] for n in (0, 1)] == [1, 1]
