"""Tests on a real Ray cluster of two nodes."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import deadly
import pytest
import ray_cluster
from conftest import read_metrics
from page import command
from ray_cluster import RayCluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[RayCluster]:
    pytest.importorskip("ray")
    with ray_cluster.started(environment) as cluster:
        yield cluster


def test_sweep_survives_a_dead_worker_and_is_resumed(
    cluster: RayCluster, environment: dict[str, str], tmp_path: Path
) -> None:
    # Two processes a job, a user's method, and relative paths, which are the driver's.
    deadly.write(tmp_path / "mine")

    def run(words: list[str], **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*words, "--config-dir", "mine"],
            cwd=tmp_path,
            env={**environment, **cluster.settings, **settings},
            capture_output=True,
            text=True,
            timeout=300,
        )

    jobs = ("data=digits", "trainer.max_epochs=1", "trainer.devices=2", "method=deadly,kd")
    own = (*jobs, "hydra.launcher.ray.remote.num_cpus=2", "hydra.sweep.dir=sweep")
    done = run(command("ray.init.address=auto", *own), RAY_ADDRESS=cluster.address)
    assert done.returncode == 1, done.stderr
    assert "validated against ConfigStore" not in done.stderr
    assert "job 0 failed: its worker died: " in done.stdout, done.stderr
    assert "1 of 2 jobs failed" in done.stderr
    survived = read_metrics(tmp_path / "sweep" / "1")
    assert not (tmp_path / "sweep" / "0" / "metrics.json").exists()
    # On this machine alone.
    words = command("hydra/launcher=ray seed")
    done = run([*words[:2], "resume=sweep", "hydra.launcher.ray.init.address=null"])
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "sweep" / "1") == survived
    assert read_metrics(tmp_path / "sweep" / "0")["epochs"] == 1
    assert {p.name for p in (tmp_path / "mine").glob("called-*")} == {"called-0", "called-1"}
