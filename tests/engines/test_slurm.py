"""Tests on a real Slurm of two nodes."""

import pytest
from slurm_cluster import Slurm

pytestmark = pytest.mark.slow


def test_cluster_runs_commands_and_scripts(slurm: Slurm) -> None:
    done = slurm.srun("-N2", "-n2", "bash", "-c", "echo $SLURMD_NODENAME $SLURM_PROCID")
    assert sorted(done.stdout.split("\n")) == ["", "n1 0", "n2 1"], done.stderr
    job = slurm.sbatch("exit 3")
    assert slurm.wait(job)["ExitCode"] == "3:0", slurm.output(job)
