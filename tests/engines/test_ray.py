"""Tests on a real Ray cluster of two nodes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import deadly
import pytest
import ray_cluster
from conftest import ROOT, read_metrics
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
    address = f"hydra.launcher.ray.init.address={cluster.address}"

    def train(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), "--config-dir", "mine", *words],
            cwd=tmp_path,
            env={**environment, **cluster.settings},
            capture_output=True,
            text=True,
            timeout=300,
        )

    done = train(
        *("-m", "hydra/launcher=ray", address, "hydra.launcher.ray.remote.num_cpus=2"),
        *("data=digits", "trainer.max_epochs=1", "trainer.devices=2", "method=deadly,kd"),
        "hydra.sweep.dir=sweep",
    )
    assert done.returncode == 1, done.stderr
    assert "validated against ConfigStore" not in done.stderr
    assert "job 0 failed: its worker died: " in done.stdout, done.stderr
    assert "1 of 2 jobs failed" in done.stderr
    survived = read_metrics(tmp_path / "sweep" / "1")
    assert not (tmp_path / "sweep" / "0" / "metrics.json").exists()
    done = train("resume=sweep", address)
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "sweep" / "1") == survived
    assert read_metrics(tmp_path / "sweep" / "0")["epochs"] == 1
    assert {p.name for p in (tmp_path / "mine").glob("called-*")} == {"called-0", "called-1"}
