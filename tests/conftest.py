"""Shared by the tests: real data, the real command, and runs that are trained once.

A test that takes a run, starts a process or trains on much data is marked ``slow``; the others
(``pytest -m "not slow"``) take less than a minute together.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import slurm_cluster
import torch
from filelock import FileLock
from slurm_cluster import Slurm
from spy import Spy
from torch import Tensor

from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.runs.load import load_run

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("KD_DATA_DIR", ROOT.parent / "shared" / "data"))

Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure(config: pytest.Config) -> None:
    """Use one thread in each of the processes that run tests in parallel."""
    torch.set_num_threads(1)


def read_metrics(run_dir: Path) -> dict[str, float]:
    """The figures of a run."""
    return json.loads((run_dir / "metrics.json").read_text())


def read_facts(run_dir: Path) -> dict[str, Any]:
    """What ``run.json`` records of a run."""
    return json.loads((run_dir / "run.json").read_text())


def recompute(run_dir: Path, split: str, **data: Any) -> tuple[Tensor, Tensor]:
    """Logits of a run's best checkpoint for a split of the digits, and the labels.

    In float64, without the code that trains and measures: only the images and the network are
    the package's.

    Returns:
        N×C, float64, and N.
    """
    run, digits = load_run(run_dir), DigitsDataModule(**data)
    digits.setup()
    inputs, target = digits.splits[split]
    mean, std = (torch.tensor(v).double().view(1, -1, 1, 1) for v in (run.spec.mean, run.spec.std))
    with torch.inference_mode():
        return run.network.double()((inputs.double() / 255 - mean) / std), target


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of the rows whose largest logit is that of the label."""
    return int((logits.argmax(1) == target).sum()) / len(target)


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts have the same names and bitwise the same tensors."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class RunsCode:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that contains the real MNIST."""
    if not (DATA / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip(f"MNIST is not in {DATA}: set KD_DATA_DIR to a folder that holds MNIST/raw")
    return DATA


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder shared by all processes of this test session."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(folder: Path, make: Callable[[], str]) -> str:
    """Make a folder in one process while the others wait; return what ``make`` printed."""
    printed = folder.with_suffix(".txt")
    with FileLock(folder.with_suffix(".lock")):
        if not printed.is_file():
            printed.write_text(make())
    return printed.read_text()


@pytest.fixture(scope="session")
def store(shared: Path) -> Path:
    """The session's store of teachers, so that each is trained once."""
    store = shared / "teachers"
    store.mkdir(exist_ok=True)
    return store


@pytest.fixture(scope="session")
def environment(store: Path) -> dict[str, str]:
    """The environment of a command as a user's shell would have it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "PL_GLOBAL_SEED")}
    return {
        **kept,
        "KD_TEACHERS": str(store),
        "KD_DATA_DIR": str(DATA),
        "KD_CACHE": str(store / "cache"),
        "COLUMNS": "160",
        "OMP_NUM_THREADS": "1",  # several commands may run at a time
    }


@pytest.fixture(scope="session")
def command(environment: dict[str, str]) -> Command:
    """Runs ``python train.py`` with the given arguments.

    Keywords set environment variables, or unset them with None.
    """

    def run(*arguments: str, **settings: str | None) -> subprocess.CompletedProcess[str]:
        variables = {**environment, **settings}
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=ROOT,
            env={k: v for k, v in variables.items() if v is not None},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


def run_script(script: Path, *arguments: str | Path, cwd: Path | None = None) -> str:
    """Run a Python script in a process of its own, and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def digits_run(command: Command, shared: Path) -> Path:
    """The run directory of a student distilled on the digits for two epochs.

    What the command printed is in a file beside it with the suffix ``.txt``.
    """
    run_dir = shared / "student"

    def train() -> str:
        words = ("data=digits", "trainer.max_epochs=2", "profile=true")
        done = command(*words, f"hydra.run.dir={run_dir}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    once(run_dir, train)
    return run_dir


@pytest.fixture(scope="session")
def slurm(
    environment: dict[str, str], shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Slurm]:
    """A Slurm cluster of the nodes n1 and n2 on this machine, with this Python on its PATH."""
    packages = shared / "slurm-packages"
    reason = slurm_cluster.why_not() or once(packages, lambda: slurm_cluster.unpacked(packages))
    if reason:
        pytest.skip(reason)
    with slurm_cluster.started(packages, tmp_path_factory.mktemp("slurm"), environment) as cluster:
        yield cluster


@dataclass(frozen=True)
class Sweep:
    """A finished sweep; iterating yields its jobs' directories by number."""

    folder: Path
    stdout: str

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted((p for p in self.folder.iterdir() if p.is_dir()), key=_number))

    def spied(self, job: Path) -> list[dict[str, Any]]:
        """The notes of each process of a job, by rank; see :class:`spy.Spy`."""
        return [json.loads(p.read_text()) for p in sorted(job.glob("spy-*.json"))]


def _number(job: Path) -> int:
    return int(job.name)


@pytest.fixture(scope="session")
def device_sweep(command: Command, shared: Path) -> Sweep:
    """Six jobs for one epoch: one process, two, and one again, each with two temperatures."""
    folder = shared / "devices"

    def sweep() -> str:
        done = command(
            *("-m", "data=digits", "trainer.max_epochs=1", f"hydra.sweep.dir={folder}"),
            *("trainer.devices=1,2,1", "method.temperature=2,7", *Spy.USE),
            PYTHONPATH=str(ROOT / "tests"),
            OMP_NUM_THREADS=None,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return Sweep(folder, once(folder, sweep))
