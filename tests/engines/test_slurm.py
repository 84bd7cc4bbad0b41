"""Tests on a real Slurm of two nodes, and of its rehearsal on one machine."""

import re
import subprocess
import time
from pathlib import Path

import deadly
import pytest
from conftest import ROOT, accuracy, read_facts, read_metrics, recompute
from page import command
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
    own = ("method=deadly", *QUICK, f"hydra.sweep.dir={sweep}", "--config-dir", str(mine))
    done = slurm(*command("submitit_slurm", *own))
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


def test_a_dead_job_of_submitit_fails_alone(environment: dict[str, str], tmp_path: Path) -> None:
    # On this machine: on Slurm, submitit learns of a death from the accounting alone.
    mine, sweep = deadly.write(tmp_path / "mine"), tmp_path / "sweep"
    own = ("method=deadly,ce", *QUICK, f"hydra.sweep.dir={sweep}", "--config-dir", str(mine))
    words = command("hydra/launcher=submitit_local", *own)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "validated against ConfigStore" not in done.stderr
    assert re.search(r"job 0 failed: its worker died: \w+, see .*_log.err", done.stdout)
    assert "1 of 2 jobs failed" in done.stderr
    assert read_metrics(sweep / "1")["epochs"] == 1


def test_a_run_is_a_batch_job(slurm: Slurm, tmp_path: Path) -> None:
    *words, line = command("sbatch")
    own = f"{' '.join(QUICK)} hydra.run.dir={tmp_path / 'run'}"
    done = slurm(*words, f"{line} {own}", "--wait", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, (tmp_path / "out").read_text()
    assert read_metrics(tmp_path / "run")["epochs"] == 1


def test_a_preempted_job_of_a_sweep_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    # Two tasks, which submitit starts and requeues; the signal is that of a preemption.
    sweep = tmp_path / "sweep"
    own = ("data=digits", "trainer.max_epochs=2", "trainer.devices=2", "student.width=4")
    own += ("hydra.launcher.tasks_per_node=2", "hydra.launcher.cpus_per_task=1")
    own += ("+callbacks.hold._target_=spy.HoldUntilRestart", f"hydra.sweep.dir={sweep}")
    words = command("submitit_slurm", *own, "hydra.launcher.timeout_min=30")
    environment = {**slurm.env, "PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        last = sweep / "0" / "checkpoints" / "last.ckpt"
        for _ in range(600):
            if last.is_file() or process.poll() is not None:
                break
            time.sleep(0.2)
        (job,) = {p.name.partition("_")[0] for p in (sweep / ".submitit").glob("*/*_log.out")}
        slurm("scancel", "--signal=USR2", job)
        out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert read_metrics(sweep / "0")["epochs"] == 2
    assert (sweep / "0" / "train.log").read_text().count("epoch 1 of 2") == 1
    assert read_facts(sweep / "0")["processes"] == 2
